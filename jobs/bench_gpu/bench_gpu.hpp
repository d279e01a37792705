// The benches of `--device cuda`. What they time is described by BenchOptions; they print as they go unless
// JSON is asked for.
#pragma once

#include "jobs/bench_table.hpp"
#include "jobs/options.hpp"

namespace tessera {

// attention, decode, select, gemm and e2e. UsageError where this build or machine has no GPU.
BenchReport run_gpu_bench(const BenchOptions& options);

}  // namespace tessera
