// A target sparsity of a method whose choice depends on the data in size (vertical_slash, flexprefill,
// xattention) is turned into one native budget by measuring: a few prompts are prefilled, a ladder of budgets
// selects beside each other in one prefill, and between its rungs the sparsity is interpolated. Arithmetic
// solves the other methods (attention/budget.hpp).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "attention/budget.hpp"
#include "jobs/tasks/task.hpp"
#include "parallel/communicator.hpp"
#include "runtime/model/language_model.hpp"

namespace tessera {

// What each of these settings would show, over all prompts, ranks, layers and heads.
using RunLadder = std::function<std::vector<PairTotals>(std::span<const MethodSettings> ladder)>;

bool needs_calibration(const Method& method);

// The budget of a method as one number from 0 (sparsest) to most() (dense), on a scale on which sparsity
// changes evenly enough to interpolate:
//   vertical_slash  columns = diagonals = n, log n from the 64 forced diagonals to the length
//   flexprefill     up to 1: alpha = 0, log floor from 64 to the floor of the settings; from there to 2:
//                   alpha = 1 − (2 − position)², which is finer near 1, where density grows fast
//   xattention      threshold = 1 − (1 − position)²
// So flexprefill's floor is lowered only where alpha = 0 is still too dense.
class BudgetDial {
 public:
  BudgetDial(const MethodSettings& settings, std::int64_t length);
  double most() const { return most_; }
  std::map<std::string, double> native(double position) const;
  MethodSettings settings(double position) const;

 private:
  std::int64_t tokens(double position) const;  // in [0, 1]: least_ … top_ evenly in their logarithm

  MethodSettings base_;
  double most_ = 1;
  std::int64_t least_ = 1;
  std::int64_t top_ = 1;
};

struct CalibrationRung {
  double position = 0;  // on the dial
  double sparsity = 0;  // as measured
};

struct Calibration {
  BudgetResult budget;
  std::vector<CalibrationRung> rungs;  // by position, of both passes
};

// The largest budget whose sparsity is at least target, from one ladder over the whole dial and a second one
// between the two rungs around the target. Where forced units leave none, the smallest budget, and the note
// says what can be reached.
Calibration calibrate_budget(const MethodSettings& settings, std::int64_t length, double target,
                             const RunLadder& run);

// ---- prompts ------------------------------------------------------------------------------------

// Prompts have the run's seed and sample indices from here up, which no evaluated sample has (--samples ends
// far below). Prompt i is of task i modulo the tasks, so that each has its part.
inline constexpr std::int64_t kFirstCalibrationSample = std::int64_t{1} << 40;
inline constexpr int kCalibrationPrompts = 2;  // at least; one a task where there are more tasks
std::vector<TaskSample> calibration_prompts(const std::vector<const Task*>& tasks,
                                            const TaskContext& context);

// One prefill that adds to totals[i] what ladder[i] would show to this rank's rows and heads.
using PrefillWithLadder =
    std::function<void(std::span<const std::int32_t> tokens, std::span<const MethodSettings> ladder,
                       std::vector<PairTotals>* totals)>;

// Prompt i runs on replica i modulo `replicas`; the sums over all ranks come back the same on each, so that
// all ranks solve for the same budget. Collective over the world.
RunLadder ladder_over_prompts(Communicator& world, int replica, int replicas,
                              const std::vector<TaskSample>& prompts, PrefillWithLadder prefill);

}  // namespace tessera
