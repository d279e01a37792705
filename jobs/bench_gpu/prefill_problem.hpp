// Dense causal prefill of one sequence of random data, for the benches: blocks in shuffled slots.
#pragma once

#include "attention/prefill_cuda.hpp"
#include "jobs/bench_gpu/gpu_timer.hpp"
#include "jobs/bench_shape.hpp"

namespace tessera::cuda {

struct PrefillProblem {
  PrefillProblem(const BenchShape& shape, GpuTimer& gpu);

  DeviceBuffer q, out, pool, table, positions, lse, counters;
  PrefillParams params;
};

// Of the causal half, as is usual: 2 · S² · D · H.
double prefill_flops(const BenchShape& shape);

}  // namespace tessera::cuda
