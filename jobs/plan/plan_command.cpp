#include "jobs/plan/plan_command.hpp"

#include <fmt/format.h>

#include "jobs/host_memory.hpp"
#include "jobs/plan/plan_check.hpp"
#include "jobs/plan/plan_table.hpp"
#include "jobs/text_output.hpp"

namespace tessera {
namespace {

Machine machine_of(const PlanOptions& options) {
  Machine machine = make_machine(options.eval.machine);
  machine.decodes_by_heads = options.eval.device == DeviceKind::kCuda;
  if (machine.memory == 0 && options.eval.device == DeviceKind::kCpu) {
    machine.memory = static_cast<double>(read_host_memory().available);
    machine.memory_is_shared = true;
  }
  return machine;
}

std::string ranks_text(int ranks) {
  return fmt::format("{} rank{}", ranks, ranks == 1 ? "" : "s");
}

// By how much the nearest grid misses, and what would fit instead.
std::string refusal(const PlanProblem& problem, const Machine& machine, const Plan& plan) {
  const GridPlan& nearest = plan.grids.front();
  std::string text = fmt::format(
      "memory: no grid of {} fits: tp {} x sp {} needs {:.2f} GB a rank (weights {:.2f}, KV {:.2f}, "
      "workspace "
      "{:.2f}), {:.2f} GB more than the {:.2f} GB of {}",
      ranks_text(problem.ranks), nearest.shape.tp, nearest.shape.sp, nearest.memory() / 1e9,
      nearest.weights / 1e9, nearest.kv / 1e9, nearest.workspace / 1e9, nearest.missing / 1e9,
      static_cast<double>(plan.memory_limit) / 1e9,
      machine.memory_is_shared ? "a rank's share of this host's memory" : machine.name);
  const std::optional<GridShape> least = least_grid(problem, machine);
  const std::int64_t longest = longest_length(problem, machine);
  if (least) {
    text += fmt::format("; at least {} (tp {} x sp {}) would fit", ranks_text(least->ranks()), least->tp,
                        least->sp);
  } else if (!machine.memory_is_shared) {
    text += "; nor would 1024 ranks fit";
  }
  text += longest > 0 ? fmt::format("; with {} at most --length {}", ranks_text(problem.ranks), longest)
                      : fmt::format("; with {} no length fits", ranks_text(problem.ranks));
  return text;
}

}  // namespace

int run_plan(const PlanOptions& options, std::FILE* out, std::FILE* errors) {
  const Machine machine = machine_of(options);
  PlanSetup setup = check_plan(options);
  const auto tell = [errors](const std::vector<Finding>& findings) {
    for (const Finding& finding : findings) fmt::print(errors, "tessera: {}\n", finding.text);
    return static_cast<int>(code_of(findings));
  };
  if (!setup.findings.empty()) return tell(setup.findings);

  const Plan plan = make_plan(*setup.problem, machine);
  if (plan.grids.empty()) {
    return tell({{ExitCode::kUsage,
                  fmt::format("--ranks {}: no tp x sp of these options divides it and the model's heads and "
                              "MLP; choose others",
                              options.ranks)}});
  }
  if (!plan.any_fits()) return tell({{ExitCode::kResource, refusal(*setup.problem, machine, plan)}});
  print_text(out, plan_text({setup, machine, plan}, options.format));
  flush_text(out);
  return 0;
}

}  // namespace tessera
