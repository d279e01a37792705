// The `tessera` command.
#include <fmt/core.h>

#include <cerrno>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "jobs/bench.hpp"
#include "jobs/eval.hpp"
#include "jobs/info.hpp"
#include "jobs/options.hpp"
#include "jobs/trace_command.hpp"
#include "parallel/agreement.hpp"
#include "parallel/mpi_session.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/host.hpp"

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
  if (session.size() == 1)
    fmt::print(stderr, "tessera: {}\n", message);
  else
    fmt::print(stderr, "tessera: rank {} ({}): {}\n", session.rank(), host_name(), message);
}

// An error that all ranks agreed on is printed by rank 0 alone, and every rank leaves with its code. One that
// a rank met by itself while others may wait for it ends the whole job.
int run_on_ranks(const std::function<ExitCode(MpiSession&)>& work) {
  MpiSession session = MpiSession::start(detect_launch());
  try {
    const ExitCode code = work(session);
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

// A bad command line is the same on every rank: under a launcher they agree on it, so that one line is
// printed and not one a rank. Should only some have failed (a --config file that one machine lacks), the
// agreement is met by the one that the others' command begins with.
int refuse_command_line(std::exception_ptr refusal) {
  if (!detect_launch().under_launcher) std::rethrow_exception(refusal);
  return run_on_ranks([&](MpiSession& session) {
    const std::unique_ptr<Communicator> world = session.world();
    run_agreed(*world, [&] { std::rethrow_exception(refusal); });
    return ExitCode::kDone;
  });
}

// Tables go to standard output, or with --output to one file each in that folder.
int export_tables(const TraceOptions& options) {
  std::vector<std::string> tables{options.table};
  if (options.table == "all") tables = {"points", "attempts", "samples"};
  if (options.output.empty()) {
    if (tables.size() > 1)
      throw UsageError("trace export: without --output DIR name one --table points|attempts|samples");
    return run_trace_export({options.files.front(), tables.front(), options.format}, stdout);
  }
  std::filesystem::create_directories(options.output);
  for (const std::string& table : tables) {
    const std::string path = fmt::format("{}/{}.{}", options.output, table, options.format);
    std::FILE* file = std::fopen(path.c_str(), "w");
    if (file == nullptr) throw_write_error(path, "open", errno);
    const int code = run_trace_export({options.files.front(), table, options.format}, file);
    if (std::fclose(file) != 0) throw_write_error(path, "write", errno);
    if (code != 0) return code;
  }
  return 0;
}

int run_trace(const TraceOptions& options) {
  switch (options.action) {
    case TraceOptions::Action::kCheck:
      for (const std::string& file : options.files) {
        if (const int code = run_trace_check(file, stdout); code != 0) return code;
      }
      return 0;
    case TraceOptions::Action::kRebuild:
      return run_trace_rebuild(options.files.front(), stdout);
    case TraceOptions::Action::kExport:
      return export_tables(options);
    case TraceOptions::Action::kMerge:
      return run_trace_merge(options.output, options.files, stdout);
  }
  throw InternalError("internal error: a trace action is not handled");
}

int run_alone(const ParsedCommand& command) {
  if (const auto* text = std::get_if<PrintText>(&command)) {
    fmt::print("{}", text->text);
    return 0;
  }
  if (const auto* trace = std::get_if<TraceOptions>(&command)) return run_trace(*trace);
  return run_bench(std::get<BenchOptions>(command));
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  using namespace tessera;
  try {
    std::optional<ParsedCommand> command;
    std::exception_ptr refusal;
    try {
      command = parse_command_line(argc, argv);
    } catch (const Error&) {
      refusal = std::current_exception();
    }
    if (refusal) return refuse_command_line(refusal);
    if (!is_parallel(*command)) return run_alone(*command);
    return run_on_ranks(
        [&](MpiSession& session) { return run_parallel(*command, session, joined(argc, argv)); });
  } catch (const Error& error) {
    fmt::print(stderr, "tessera: {}\n", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    fmt::print(stderr, "tessera: unexpected: {}\n", error.what());
    return static_cast<int>(ExitCode::kInternal);
  }
}
