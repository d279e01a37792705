#include "jobs/bench_gpu/gpu_benches.hpp"
#include "jobs/bench_gpu/prefill_problem.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {
namespace {

bool path_takes(const std::string& path, const BenchShape& shape) {
  return path != "wgmma-192" || shape.head_dim == 128;
}

std::function<void()> launch_of(const std::string& path, const PrefillParams& chosen) {
  PrefillParams p = chosen;
  if (path == "wgmma-192") p.tile_keys = 192;
  if (path == "auto") return [p] { prefill_attention(p); };
  if (path == "mma") return [p] { prefill_attention_mma(p); };
  return [p] { prefill_attention_wgmma(p); };
}

}  // namespace

void bench_prefill(const BenchOptions& options, GpuTimer& gpu, const ShowRow& show) {
  for (const BenchShape& shape : options.shapes) {
    if (shape.sequences != 1)
      throw UsageError("bench attention: {}: prefill takes one sequence", name_of(shape));
    const PrefillProblem problem(shape, gpu);
    std::vector<std::string> paths;
    std::vector<std::function<void()>> works;
    for (const std::string& path : options.paths) {
      if (!path_takes(path, shape)) continue;
      paths.push_back(path);
      works.push_back(launch_of(path, problem.params));
    }
    const std::vector<GpuTimes> times = gpu.time_in_turns(works, options.repeats);
    for (std::size_t i = 0; i < works.size(); ++i) {
      BenchRow row;
      row.work = paths[i] == "auto" ? "dense prefill" : "dense prefill, " + paths[i];
      row.shape = name_of(shape);
      row.seconds = times[i].seconds;
      row.sm_clock_mhz = times[i].sm_clock_mhz;
      row.flops = prefill_flops(shape);
      row.limit = BenchLimit::kGemm;
      show(row);
    }
  }
}

}  // namespace tessera::cuda
