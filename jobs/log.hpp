// Messages of a run: errors (and on rank 0 warnings) to standard error, and with --log-dir everything to one
// file a rank. Ranks above 0 name themselves and their host.
#pragma once

#include <fmt/core.h>

#include <iosfwd>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace tessera {

class Log {
 public:
  // log_dir: empty for none; made where it is missing. ResourceError names the file that cannot be written.
  // An earlier file of the same rank is appended to, so that a resumed run keeps what came before.
  Log(int rank, std::string host, const std::string& log_dir);
  Log(int rank, std::string host, const std::string& log_dir, std::ostream& errors);  // for tests
  ~Log();
  Log(Log&&) noexcept;
  Log& operator=(Log&&) noexcept;

  template <typename... Args>
  void info(fmt::format_string<Args...> format, Args&&... args) {
    write(Level::kInfo, fmt::format(format, std::forward<Args>(args)...));
  }
  template <typename... Args>
  void warn(fmt::format_string<Args...> format, Args&&... args) {
    write(Level::kWarning, fmt::format(format, std::forward<Args>(args)...));
  }
  // A whole message, such as an exception's text.
  void error(std::string_view message) { write(Level::kError, message); }

 private:
  enum class Level { kInfo, kWarning, kError };
  struct Parts;
  void write(Level level, std::string_view message);

  std::unique_ptr<Parts> parts_;
};

}  // namespace tessera
