#include "parallel/agreement.hpp"

#include <cstring>
#include <exception>
#include <new>
#include <optional>
#include <string>

#include "parallel/gather_texts.hpp"
#include "parallel/mpi_session.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/host.hpp"

namespace tessera {
namespace {

// As one rank tells it to the others: code, then "host\0message".
struct Failure {
  std::int32_t code = 0;
  std::string host;
  std::string message;
};

std::string pack(const Failure& failure) {
  std::string bytes(sizeof failure.code, '\0');
  std::memcpy(bytes.data(), &failure.code, sizeof failure.code);
  return bytes + failure.host + '\0' + failure.message;
}

Failure unpack(std::string_view bytes) {
  Failure failure;
  TESSERA_CHECK(bytes.size() > sizeof failure.code);
  std::memcpy(&failure.code, bytes.data(), sizeof failure.code);
  bytes.remove_prefix(sizeof failure.code);
  const std::size_t end = bytes.find('\0');
  TESSERA_CHECK(end != std::string_view::npos);
  failure.host = bytes.substr(0, end);
  failure.message = bytes.substr(end + 1);
  return failure;
}

std::optional<Failure> run(const std::function<void()>& work) {
  constexpr int kInternal = static_cast<int>(ExitCode::kInternal);
  try {
    work();
    return std::nullopt;
  } catch (const PeerError&) {
    throw;
  } catch (const Error& error) {
    const int code = static_cast<int>(error.code());
    return Failure{code == 0 ? kInternal : code, host_name(), error.what()};
  } catch (const std::bad_alloc&) {
    return Failure{
        static_cast<int>(ExitCode::kResource), host_name(),
        "memory: the system has none left; use more ranks, a shorter --length or a smaller --batch"};
  } catch (const std::exception& error) {
    return Failure{kInternal, host_name(), error.what()};
  }
}

}  // namespace

void throw_error(int code, const std::string& message) {
  switch (static_cast<ExitCode>(code)) {
    case ExitCode::kUsage:
      throw UsageError("{}", message);
    case ExitCode::kInput:
      throw InputError("{}", message);
    case ExitCode::kResource:
      throw ResourceError("{}", message);
    case ExitCode::kPeer:
      throw PeerError("{}", message);
    case ExitCode::kNumerical:
      throw NumericalError("{}", message);
    case ExitCode::kStopped:
      throw StopRequested("{}", message);
    case ExitCode::kDone:
    case ExitCode::kInternal:
      break;
  }
  throw InternalError("{}", message);
}

void run_agreed(Communicator& world, const std::function<void()>& work) {
  const std::optional<Failure> mine = run(work);
  std::int64_t any_failed = mine ? 1 : 0;
  world.all_reduce_max(&any_failed, 1);
  if (any_failed == 0) return;

  // Empty for a rank that did not fail.
  const std::vector<std::string> packed = all_gather_texts(world, mine ? pack(*mine) : std::string());
  std::optional<Failure> first;
  int first_rank = 0;
  bool alike = true;
  for (int r = 0; r < world.size(); ++r) {
    const std::string& part = packed[static_cast<std::size_t>(r)];
    if (part.empty()) {
      alike = false;
      continue;
    }
    const Failure failure = unpack(part);
    if (!first) {
      first = failure;
      first_rank = r;
    }
    alike = alike && failure.code == first->code && failure.message == first->message;
  }
  TESSERA_CHECK(first.has_value());
  try {
    throw_error(first->code, alike
                                 ? first->message
                                 : fmt::format("rank {} ({}): {}", first_rank, first->host, first->message));
  } catch (Error& error) {
    error.mark_on_all_ranks();
    throw;
  }
}

}  // namespace tessera
