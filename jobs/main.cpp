// The `tessera` command.
#include <fmt/core.h>

#include <cerrno>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "jobs/bench.hpp"
#include "jobs/eval.hpp"
#include "jobs/info.hpp"
#include "jobs/launch_facts.hpp"
#include "jobs/options.hpp"
#include "jobs/plan/plan_command.hpp"
#include "jobs/report.hpp"
#include "jobs/select_command.hpp"
#include "jobs/tasks_command.hpp"
#include "jobs/trace_command.hpp"
#include "parallel/agreement.hpp"
#include "parallel/handshake.hpp"
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
  if (const auto* select = std::get_if<SelectOptions>(&command)) {
    return static_cast<ExitCode>(run_select(*select, session));
  }
  throw InternalError("internal error: a command is not handled");
}

bool is_parallel(const ParsedCommand& command) {
  return std::holds_alternative<EvalOptions>(command) || std::holds_alternative<InfoOptions>(command) ||
         std::holds_alternative<SelectOptions>(command);
}

// What this rank was asked to do, or why it cannot be understood.
struct RankCommand {
  std::optional<ParsedCommand> parsed;
  std::exception_ptr failure;
  std::string line;     // as it was given
  std::string options;  // the same without the program's name
};

// Ranks of one job say once, together, what is wrong with their options. A failure of a process that is
// alone, or of a command that starts no ranks, is thrown at once.
RankCommand parse_on_rank(int argc, char** argv) {
  RankCommand command;
  command.line = joined(argc, argv);
  command.options = joined(argc - 1, argv + 1);
  try {
    command.parsed = parse_command_line(argc, argv);
  } catch (const Error&) {
    const std::string name = argc > 1 ? argv[1] : "";
    const bool starts_ranks = name == "eval" || name == "info" || name == "select";
    if (!starts_ranks || detect_launch().expected_ranks <= 1) throw;
    command.failure = std::current_exception();
  }
  return command;
}

void print_rank_error(const MpiSession& session, const std::string& message) {
  if (session.size() == 1)
    fmt::print(stderr, "tessera: {}\n", message);
  else
    fmt::print(stderr, "tessera: rank {} ({}): {}\n", session.rank(), host_name(), message);
}

// An error that all ranks agreed on is printed by rank 0 alone, and every rank leaves with its code. One that
// a rank met by itself while others may wait for it ends the whole job.
int run_on_ranks(const RankCommand& command) {
  MpiSession session = MpiSession::start(detect_launch());
  try {
    run_agreed(*session.world(), [&] {
      if (command.failure) std::rethrow_exception(command.failure);
    });
    const bool shows_what_differs = std::holds_alternative<InfoOptions>(*command.parsed);
    if (!shows_what_differs) {
      const std::unique_ptr<Communicator> world = session.world();
      require_equal_facts(*world, launch_facts(*command.parsed, command.options));
      const std::string warning = unlike_processors_warning(*world);
      if (!warning.empty() && session.rank() == 0) fmt::print(stderr, "tessera: {}\n", warning);
    }
    const ExitCode code = run_parallel(*command.parsed, session, command.line);
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

// Tables go to standard output, or with --output to one file each in that folder.
int export_tables(const TraceOptions& options) {
  std::vector<std::string> tables{options.table};
  if (options.table == "all") tables = {"points", "attempts", "samples"};
  if (options.output.empty()) {
    if (tables.size() > 1)
      throw UsageError("trace export: without --output DIR name one --table points|attempts|samples");
    return run_trace_export({options.files.front(), tables.front(), options.format}, stdout);
  }
  std::error_code problem;
  std::filesystem::create_directories(options.output, problem);
  if (problem) throw_write_error(options.output, "making the folder of --output", problem.value());
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
  if (const auto* report = std::get_if<ReportOptions>(&command)) return run_report(*report, stdout);
  if (const auto* plan = std::get_if<PlanOptions>(&command)) return run_plan(*plan, stdout, stderr);
  if (const auto* tasks = std::get_if<TasksOptions>(&command)) return run_tasks(*tasks, stdout);
  return run_bench(std::get<BenchOptions>(command));
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  using namespace tessera;
  try {
    const RankCommand command = parse_on_rank(argc, argv);
    const bool alone = command.parsed && !is_parallel(*command.parsed);
    return alone ? run_alone(*command.parsed) : run_on_ranks(command);
  } catch (const Error& error) {
    fmt::print(stderr, "tessera: {}\n", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    fmt::print(stderr, "tessera: unexpected: {}\n", error.what());
    return static_cast<int>(ExitCode::kInternal);
  }
}
