#include <cmath>
#include <numeric>
#include <random>

#include "jobs/bench_gpu/prefill_problem.hpp"

namespace tessera::cuda {

PrefillProblem::PrefillProblem(const BenchShape& shape, GpuTimer& gpu) {
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

double prefill_flops(const BenchShape& shape) {
  const double tokens = static_cast<double>(shape.length);
  return 2 * tokens * tokens * shape.head_dim * shape.heads;
}

}  // namespace tessera::cuda
