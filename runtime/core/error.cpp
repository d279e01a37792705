#include "runtime/core/error.hpp"

#include <system_error>

namespace tessera {

void throw_check_failed(const char* expression, const char* file, int line) {
  throw InternalError("internal error: {} does not hold at {}:{}; please report it with the command line",
                      expression, file, line);
}

std::string errno_text(int error_number) {
  return std::generic_category().message(error_number);
}

void throw_write_error(std::string_view path, std::string_view operation, int error_number) {
  throw ResourceError("{}: {} failed: {}; free space or choose another place, then run again", path,
                      operation, errno_text(error_number));
}

}  // namespace tessera
