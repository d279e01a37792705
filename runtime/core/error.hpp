// The error family. Everything that can go wrong for a user is an Error with an exit code; `main`
// catches it, prints one line and ends the job. Helpers throw, they never print or exit.
#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace tessera {

// Exit codes, agreed by all ranks (DESIGN.md section 5).
enum class ExitCode : int {
  kDone = 0,
  kInternal = 1,   // a bug of ours: an invariant did not hold
  kUsage = 2,      // options, configuration, lock or key
  kInput = 3,      // a bad input file
  kResource = 4,   // memory, disk
  kPeer = 5,       // another rank failed or timed out
  kNumerical = 6,  // NaN or Inf
  kStopped = 75,   // stopped on request: run the same command again to resume
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

  // Every rank throws this same error (see run_agreed), so that all can end in order with its code.
  bool on_all_ranks() const { return on_all_ranks_; }
  void mark_on_all_ranks() { on_all_ranks_ = true; }

 private:
  ExitCode code_;
  bool on_all_ranks_ = false;
};

// One class a code, so that tests and callers can tell them apart by type. Messages are one line and name
// what was wrong (option, file, field, rank), both values, and what to do.
template <ExitCode kCode>
class ErrorOf : public Error {
 public:
  template <typename... Args>
  explicit ErrorOf(fmt::format_string<Args...> format, Args&&... args)
      : Error(kCode, fmt::format(format, std::forward<Args>(args)...)) {}
};

using InternalError = ErrorOf<ExitCode::kInternal>;
using UsageError = ErrorOf<ExitCode::kUsage>;
using InputError = ErrorOf<ExitCode::kInput>;  // message starts with "FILE: FIELD: "
using ResourceError = ErrorOf<ExitCode::kResource>;
using PeerError = ErrorOf<ExitCode::kPeer>;
using NumericalError = ErrorOf<ExitCode::kNumerical>;
using StopRequested = ErrorOf<ExitCode::kStopped>;

[[noreturn]] void throw_check_failed(const char* expression, const char* file, int line);

// The text of errno for a message: "No space left on device".
std::string errno_text(int error_number);

// A resource error for ENOSPC, EDQUOT, ENOMEM, EIO, EROFS, EACCES and the like when writing.
[[noreturn]] void throw_write_error(std::string_view path, std::string_view operation, int error_number);

}  // namespace tessera

// An invariant of ours, never a user's mistake. Always on.
#define TESSERA_CHECK(condition) \
  ((condition) ? void(0) : ::tessera::throw_check_failed(#condition, __FILE__, __LINE__))
