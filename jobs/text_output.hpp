// Text that a command prints: every write is checked, and fields of CSV are quoted in one way.
#pragma once

#include <cstdio>
#include <string>

namespace tessera {

// ResourceError when the text does not get out (a full disk, a closed pipe).
void print_text(std::FILE* out, const std::string& text);
void flush_text(std::FILE* out);

// Quoted where it has to be (RFC 4180).
std::string csv_field(const std::string& text);

}  // namespace tessera
