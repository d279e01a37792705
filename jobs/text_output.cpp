#include "jobs/text_output.hpp"

#include <cerrno>

#include "runtime/core/error.hpp"

namespace tessera {

void print_text(std::FILE* out, const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), out) != text.size())
    throw_write_error("output", "writing", errno);
}

void flush_text(std::FILE* out) {
  if (std::fflush(out) != 0) throw_write_error("output", "writing", errno);
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

}  // namespace tessera
