// Where a run writes to, checked before it starts.
#pragma once

#include <cstdint>
#include <string>

namespace tessera {

// The journal is opened once its key is known, which may take a calibration: a place that cannot be written
// is better known before. ResourceError.
void check_writable(const std::string& trace);

void check_dump_folder(const std::string& folder);  // UsageError unless it is a folder or can be made

// Bytes that the file system of `file` still has for this user.
std::int64_t room_beside(const std::string& file);

}  // namespace tessera
