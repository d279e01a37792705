// What a plan foretold of a run, beside what the run measured.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "jobs/plan/machine.hpp"
#include "jobs/plan/plan.hpp"
#include "runtime/model/completion.hpp"

namespace tessera {

struct RunMeasures {
  std::vector<double> prefill_s;  // of each sample
  std::vector<double> token_s;    // of each sample with more than one token: the mean of the later ones
  std::int64_t weights = 0, kv = 0, workspace = 0;  // bytes, at their highest, each of the rank with most

  void add(const Completion& completion);
};

// Lines for the summary: memory, and, where the machine's rates are known, time; medians of the samples.
// Empty where nothing was measured.
//   plan: memory of a rank: weights 0.99 GB, measured 0.99 GB (+0.0 %); KV …; workspace …
//   plan (h100): prefill 310.0 ms, measured 322.1 ms (+3.9 %); a token 1.200 ms, measured …
std::string beside_text(const GridPlan& plan, const Machine& machine, const RunMeasures& measured);

}  // namespace tessera
