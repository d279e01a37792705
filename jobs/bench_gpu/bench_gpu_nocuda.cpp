#include "jobs/bench_gpu/bench_gpu.hpp"
#include "runtime/core/error.hpp"

namespace tessera {

BenchReport run_gpu_bench(const BenchOptions& /*options*/) {
  throw UsageError("--device cuda: this binary was built without CUDA; build where nvcc is found");
}

}  // namespace tessera
