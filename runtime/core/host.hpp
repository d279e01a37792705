// The machine this process runs on, by name.
#pragma once

#include <string>

namespace tessera {

std::string host_name();  // "unknown" where the system does not tell

}  // namespace tessera
