#include "jobs/plan/plan_options.hpp"

#include <algorithm>

#include "runtime/core/error.hpp"

namespace tessera {
namespace {

constexpr int kMostPlannedRanks = 4096;

}  // namespace

void add_plan_options(OptionSet& set, PlanOptions& o) {
  set.group("Plan");
  set.integer("ranks", &o.ranks, 1, kMostPlannedRanks, "ranks to plan for, one a device", "N",
              "tp x sp x dp where given, else 1");
  add_machine_options(set, o.eval.machine, "cpu");
  set.choice("format", &o.format, {"text", "markdown", "csv", "json"}, "of what is printed");
}

void settle_plan_options(const OptionSet& set, PlanOptions& o) {
  EvalOptions& eval = o.eval;
  const int given = std::max(1, eval.tp) * std::max(1, eval.sp) * std::max(1, eval.dp);
  if (o.ranks == 0) o.ranks = given;
  const bool all_given = eval.tp > 0 && eval.sp > 0 && eval.dp > 0;
  if (o.ranks % given != 0 || (all_given && o.ranks != given)) {
    throw UsageError(
        "--tp {} x --sp {} x --dp {}: does not divide --ranks {}; choose others, or leave some out",
        std::max(1, eval.tp), std::max(1, eval.sp), std::max(1, eval.dp), o.ranks);
  }
  if (is_gpu(eval.machine.machine)) eval.device = DeviceKind::kCuda;
  if (eval.device != DeviceKind::kCuda) return;
  if (!set.was_given("dtype")) eval.dtype = DType::kBF16;
  if (!set.was_given("kv-dtype")) eval.kv_dtype = DType::kBF16;
}

}  // namespace tessera
