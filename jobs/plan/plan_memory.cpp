// The memory side of a plan: which grids there are, what a rank of each holds, and what would fit instead.
#include <algorithm>
#include <cmath>

#include "jobs/model_setup.hpp"
#include "jobs/plan/plan_parts.hpp"
#include "runtime/core/error.hpp"
#include "runtime/model/memory_needs.hpp"

namespace tessera {
namespace {

MemoryPlan memory_plan(const PlanProblem& problem, const GridShape& shape) {
  return plan_memory(problem.config, {run_of(problem, shape), problem.weights}, problem.attention);
}

// The CUDA backend says itself what it takes, for the grids that it runs.
bool runs_on_gpu(const PlanProblem& problem, const GridShape& shape) {
  return problem.on_gpu && shape.sp == 1;
}

bool fits(const PlanProblem& problem, const Machine& machine, const GridShape& shape) {
  GridPlan grid;
  grid.shape = shape;
  fill_memory(problem, machine, grid);
  return grid.fits();
}

}  // namespace

RunShape run_of(const PlanProblem& problem, const GridShape& shape) {
  return {shape,         problem.length,   problem.length + problem.output_tokens,
          problem.batch, problem.kv_dtype, problem.dtype};
}

bool divides_model(const ModelConfig& config, int tp) {
  try {
    check_tensor_parallel(config, tp);
    return true;
  } catch (const UsageError&) {
    return false;
  }
}

std::vector<GridShape> grids_of(const PlanProblem& problem) {
  std::vector<GridShape> shapes;
  for (int tp = 1; tp <= problem.ranks; ++tp) {
    if (problem.ranks % tp != 0 || (problem.tp > 0 && tp != problem.tp)) continue;
    if (!divides_model(problem.config, tp)) continue;
    for (int sp = 1; sp <= problem.ranks / tp; ++sp) {
      if (problem.ranks / tp % sp != 0 || (problem.sp > 0 && sp != problem.sp)) continue;
      const int dp = problem.ranks / (tp * sp);
      if (problem.dp == 0 || dp == problem.dp) shapes.push_back({tp, sp, dp});
    }
  }
  return shapes;
}

double memory_limit(const PlanProblem& problem, const Machine& machine) {
  return machine.memory_is_shared ? machine.memory / problem.ranks : machine.memory;
}

void fill_memory(const PlanProblem& problem, const Machine& machine, GridPlan& grid) {
  const double limit = memory_limit(problem, machine);
  if (runs_on_gpu(problem, grid.shape)) {
    const DeviceNeeds needs =
        device_bytes_needed(problem.config, run_of(problem, grid.shape), problem.attention);
    grid.weights = static_cast<double>(needs.weights);
    grid.kv = static_cast<double>(needs.kv);
    grid.workspace = static_cast<double>(needs.workspace);
    if (limit > 0) grid.missing = grid.memory() - limit;
    return;
  }
  const MemoryPlan plan = memory_plan(problem, grid.shape);
  grid.weights = static_cast<double>(plan.weights_mapped + plan.weights_owned);
  grid.kv = static_cast<double>(plan.kv);
  grid.workspace = static_cast<double>(plan.workspace);
  if (limit <= 0) return;
  grid.missing = grid.memory() - limit;
  if (machine.memory_is_shared) {  // as eval counts before it starts: mapped pages once for all ranks
    const double ranks = problem.ranks;
    const double mapped = static_cast<double>(plan.weights_mapped);
    grid.missing += std::min(mapped * ranks, static_cast<double>(plan.weights_mapped_whole)) / ranks - mapped;
  }
}

void fill_kv_used(const PlanProblem& problem, GridPlan& grid) {
  if (runs_on_gpu(problem, grid.shape)) {  // all slots are there from the start
    grid.kv_used = grid.kv;
    return;
  }
  const RunShape run = run_of(problem, grid.shape);
  grid.kv_used = static_cast<double>(kv_slots_used(problem.config, run, problem.attention) *
                                     memory_plan(problem, grid.shape).kv_slot);
}

std::optional<GridShape> least_grid(const PlanProblem& problem, const Machine& machine, int most) {
  constexpr int kMostSequenceRanks = 64;              // chunks of 131,072 tokens are 1,024 long there
  if (machine.memory_is_shared) return std::nullopt;  // more ranks share the same memory
  for (int ranks = 1; ranks <= most; ++ranks) {
    for (int tp = ranks; tp >= 1; --tp) {  // the widest first: it takes the least
      if (ranks % tp != 0 || ranks / tp > kMostSequenceRanks || !divides_model(problem.config, tp)) continue;
      const GridShape shape{tp, ranks / tp, 1};
      if (fits(problem, machine, shape)) return shape;
    }
  }
  return std::nullopt;
}

std::int64_t longest_length(const PlanProblem& problem, const Machine& machine) {
  const std::vector<GridShape> shapes = grids_of(problem);
  const auto any_fits = [&](std::int64_t length) {
    PlanProblem shorter = problem;
    shorter.length = length;
    return std::any_of(shapes.begin(), shapes.end(),
                       [&](const GridShape& shape) { return fits(shorter, machine, shape); });
  };
  std::int64_t low = 0, high = problem.length;  // the longest that is known to fit; the shortest that is not
  if (any_fits(high)) return high;
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (any_fits(middle) ? low : high) = middle;
  }
  return low;
}

}  // namespace tessera
