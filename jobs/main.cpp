// The `tessera` command.
#include <fmt/core.h>

#include <cstdio>
#include <iostream>
#include <string>
#include <variant>

#include "jobs/bench.hpp"
#include "jobs/eval.hpp"
#include "jobs/info.hpp"
#include "jobs/options.hpp"
#include "jobs/trace_command.hpp"
#include "parallel/mpi_session.hpp"
#include "runtime/core/blas.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

std::string joined(int argc, char** argv) {
  std::string line;
  for (int i = 0; i < argc; ++i) line += (i == 0 ? "" : " ") + std::string(argv[i]);
  return line;
}

// Commands that every rank takes part in.
ExitCode run_parallel(const ParsedCommand& command, MpiSession& session, const std::string& command_line) {
  if (const auto* eval = std::get_if<EvalOptions>(&command)) return run_eval(*eval, session, command_line);
  if (const auto* info = std::get_if<InfoOptions>(&command)) {
    run_info(*info, *session.world(), std::cout);
    return ExitCode::kDone;
  }
  throw InternalError("internal error: a command is not handled");
}

bool is_parallel(const ParsedCommand& command) {
  return std::holds_alternative<EvalOptions>(command) || std::holds_alternative<InfoOptions>(command);
}

void print_rank_error(const MpiSession& session, const std::string& message) {
  if (session.size() == 1) fmt::print(stderr, "tessera: {}\n", message);
  else fmt::print(stderr, "tessera: rank {} ({}): {}\n", session.rank(), host_name(), message);
}

// An error that all ranks agreed on is printed by rank 0 alone, and every rank leaves with its code. One that a rank met
// by itself while others may wait for it ends the whole job.
int run_on_ranks(const ParsedCommand& command, const std::string& command_line) {
  MpiSession session = MpiSession::start(detect_launch());
  try {
    const ExitCode code = run_parallel(command, session, command_line);
    session.finalize();
    return static_cast<int>(code);
  } catch (const Error& error) {
    if (error.on_all_ranks()) {
      if (session.rank() == 0) fmt::print(stderr, "tessera: {}\n", error.what());
      session.finalize();
      return static_cast<int>(error.code());
    }
    print_rank_error(session, error.what());
    session.abort(error.code());
  } catch (const std::exception& error) {
    print_rank_error(session, fmt::format("unexpected: {}", error.what()));
    session.abort(ExitCode::kInternal);
  }
}

int run_alone(const ParsedCommand& command) {
  if (const auto* text = std::get_if<PrintText>(&command)) {
    fmt::print("{}", text->text);
    return 0;
  }
  if (const auto* trace = std::get_if<TraceOptions>(&command)) return run_trace(*trace, stdout);
  return run_bench(std::get<BenchOptions>(command));
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  using namespace tessera;
  try {
    prefer_best_blas_kernels(argv);
    const ParsedCommand command = parse_command_line(argc, argv);
    return is_parallel(command) ? run_on_ranks(command, joined(argc, argv)) : run_alone(command);
  } catch (const Error& error) {
    fmt::print(stderr, "tessera: {}\n", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    fmt::print(stderr, "tessera: unexpected: {}\n", error.what());
    return static_cast<int>(ExitCode::kInternal);
  }
}
