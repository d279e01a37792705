#include <cmath>
#include <numeric>
#include <random>

#include "attention/prefill_cuda.hpp"
#include "jobs/bench_gpu/gpu_benches.hpp"
#include "jobs/bench_shape.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {
namespace {

// Inputs and outputs of a shape: random values, blocks in shuffled slots. One sequence.
struct PrefillProblem {
  PrefillProblem(const BenchShape& shape, GpuTimer& gpu) {
    const std::int64_t blocks = ceil_div(shape.length, kBlockTokens);
    const std::int64_t slots = blocks * shape.kv_heads;
    const std::int64_t slot_elements = 2LL * kBlockTokens * shape.head_dim;
    const std::int64_t q_elements = shape.length * shape.heads * shape.head_dim;
    std::vector<std::int32_t> order(static_cast<std::size_t>(slots));
    std::iota(order.begin(), order.end(), 0);
    std::mt19937_64 rng(7);
    std::shuffle(order.begin(), order.end(), rng);
    std::vector<std::int32_t> first(static_cast<std::size_t>(blocks));
    for (std::size_t b = 0; b < first.size(); ++b)
      first[b] = static_cast<std::int32_t>(b) * static_cast<std::int32_t>(kBlockTokens);
    q = gpu.normal(static_cast<std::size_t>(2 * q_elements), 1);
    pool = gpu.normal(static_cast<std::size_t>(2 * slots * slot_elements), 2);
    out = gpu.empty(static_cast<std::size_t>(2 * q_elements));
    lse = gpu.empty(static_cast<std::size_t>(4 * shape.length * shape.heads));
    table = gpu.upload(order);
    positions = gpu.upload(first);
    counters = gpu.zeros(2 * sizeof(std::uint32_t));

    params.tokens = shape.length;
    params.heads = shape.heads;
    params.q = q.data();
    params.q_row_stride = static_cast<std::int64_t>(shape.heads) * shape.head_dim;
    params.block_positions = positions.as<std::int32_t>();
    params.kv.slots = pool.data();
    params.kv.slot_bytes = static_cast<std::size_t>(2 * slot_elements);
    params.kv.dtype = DType::kBF16;
    params.kv.kv_heads = shape.kv_heads;
    params.kv.head_dim = shape.head_dim;
    params.kv.blocks = blocks;
    params.kv.table_stride = blocks;
    params.kv.table = table.as<std::int32_t>();
    params.kv.length = shape.length;
    params.pool_slots = slots;
    params.scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
    params.out = out.data();
    params.lse = lse.as<float>();
    params.counters = counters.as<std::uint32_t>();
    params.stream = gpu.stream();
  }

  DeviceBuffer q, out, pool, table, positions, lse, counters;
  PrefillParams params;
};

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
    // As is usual, of the causal half: 2 · S² · D · H.
    const double tokens = static_cast<double>(shape.length);
    const double flops = 2 * tokens * tokens * shape.head_dim * shape.heads;
    for (std::size_t i = 0; i < works.size(); ++i) {
      BenchRow row;
      row.work = paths[i] == "auto" ? "dense prefill" : "dense prefill, " + paths[i];
      row.shape = name_of(shape);
      row.seconds = times[i].seconds;
      row.sm_clock_mhz = times[i].sm_clock_mhz;
      row.flops = flops;
      row.limit = BenchLimit::kGemm;
      show(row);
    }
  }
}

}  // namespace tessera::cuda
