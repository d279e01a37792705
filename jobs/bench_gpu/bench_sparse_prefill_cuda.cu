#include <fmt/format.h>

#include "jobs/bench_gpu/gpu_benches.hpp"
#include "jobs/bench_gpu/sparse_prefill_case.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {
namespace {

constexpr const char* kParts[] = {"choice", "attention", "both"};

// A method at one sparsity; its three parts, in turns with dense attention.
void bench_case(const PrefillProblem& problem, const BenchShape& shape, const std::string& method,
                double sparsity, int repeats, GpuTimer& gpu, const ShowRow& show) {
  const std::unique_ptr<SparsePrefillCase> one = make_sparse_prefill_case(method, sparsity, problem, gpu);
  one->choose();
  const double kept = one->kept(gpu);
  const std::function<void()> works[] = {[&] { prefill_attention(problem.params); }, [&] { one->choose(); },
                                         [&] { one->attend(); },
                                         [&] {
                                           one->choose();
                                           one->attend();
                                         }};
  const std::vector<GpuTimes> times = gpu.time_in_turns(works, repeats);
  for (std::size_t part = 0; part < std::size(kParts); ++part) {
    BenchRow row;
    row.work = fmt::format("{} {:.2f}: {}", method, sparsity, kParts[part]);
    row.shape = name_of(shape);
    row.seconds = times[part + 1].seconds;
    row.sm_clock_mhz = times[part + 1].sm_clock_mhz;
    row.dense_seconds = median_of(times[0].seconds);
    row.sparsity = 1 - kept;
    if (part > 0) row.flops = kept * prefill_flops(shape);
    row.limit = BenchLimit::kGemm;
    show(row);
  }
}

}  // namespace

void bench_sparse_prefill(const BenchOptions& options, GpuTimer& gpu, const ShowRow& show) {
  for (const BenchShape& shape : options.shapes) {
    if (shape.sequences != 1)
      throw UsageError("bench sparse: {}: prefill takes one sequence", name_of(shape));
    const PrefillProblem problem(shape, gpu);
    BenchRow dense;
    dense.work = "dense";
    dense.shape = name_of(shape);
    const GpuTimes times = gpu.time([&] { prefill_attention(problem.params); }, options.repeats);
    dense.seconds = times.seconds;
    dense.sm_clock_mhz = times.sm_clock_mhz;
    dense.flops = prefill_flops(shape);
    dense.limit = BenchLimit::kGemm;
    show(dense);
    for (const std::string& method : options.methods) {
      for (const double sparsity : options.sparsities)
        bench_case(problem, shape, method, sparsity, options.repeats, gpu, show);
    }
  }
}

}  // namespace tessera::cuda
