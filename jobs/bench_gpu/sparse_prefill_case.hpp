// One sparse prefill method at one sparsity on a prefill problem: its choice and its attention as work to be
// timed, and the pairs that its lists let through.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "jobs/bench_gpu/prefill_problem.hpp"

namespace tessera::cuda {

class SparsePrefillCase {
 public:
  virtual ~SparsePrefillCase() = default;
  virtual void choose() = 0;               // estimation and lists
  virtual void attend() = 0;               // to the lists of the last choice
  virtual double kept(GpuTimer& gpu) = 0;  // share of the causal pairs that those let through
};

// method: one of --methods. `sparsity` is aimed at: block_sparse meets it to a block, lists of lines as
// diagonals at random offsets do.
std::unique_ptr<SparsePrefillCase> make_sparse_prefill_case(const std::string& method, double sparsity,
                                                            const PrefillProblem& problem, GpuTimer& gpu);

}  // namespace tessera::cuda
