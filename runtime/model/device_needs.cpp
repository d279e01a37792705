#include <algorithm>

#include "kvcache/block_tables.hpp"
#include "runtime/model/device_model.hpp"
#include "runtime/model/memory_needs.hpp"
#include "runtime/model/tensor_plan.hpp"

namespace tessera {
namespace {

constexpr std::int64_t kElement = 2;          // bf16 or f16
constexpr std::int64_t kAlignment = 256;      // of a tensor
constexpr std::int64_t kProducts = 32 << 20;  // what the library of products works in
constexpr std::int64_t kPartials = 64 << 20;  // partial results of decode attention, plans, and small arrays
constexpr std::int64_t kCollectives = 256 << 20;  // what NCCL keeps for its channels, not counted by a meter

}  // namespace

DeviceNeeds device_bytes_needed(const ModelConfig& config, const RunShape& run, const AttentionPlan& plan) {
  const int tp = run.grid.tp;
  const ModelConfig c = config_of_rank(config, tp - 1, tp);
  const std::int64_t vocab = c.vocab - vocab_begin(c.vocab, tp - 1, tp);  // the last rank has most
  const LayerPlans layers(plan, c);
  DeviceNeeds needs;
  for (const TensorSpec& spec : declare_tensors(config)) {
    const Slice part = slice_of(spec, config, tp - 1, tp);
    needs.weights += part.rows() * part.columns() * kElement + kAlignment;
  }

  const KvShape kv{static_cast<int>(c.layers), static_cast<int>(c.kv_heads), static_cast<int>(c.head_dim),
                   DType::kBF16, layers.needs_page_bounds()};
  needs.kv =
      kv_slots_needed(config, run, plan) * static_cast<std::int64_t>(kv.slot_bytes() + kv.bounds_bytes());

  const std::int64_t q = c.heads * c.head_dim, k = c.kv_heads * c.head_dim;
  const std::int64_t chunk = std::min(cuda::kDeviceChunkTokens, run.prompt_tokens);
  std::int64_t pooled = kElement * (run.prompt_tokens * (c.hidden + 2 * q) +
                                    chunk * (2 * c.hidden + q + 2 * k + 3 * c.mlp) + c.hidden) +
                        4 * (run.prompt_tokens + vocab) + kProducts;
  bool evicts = false;
  for (int layer = 0; layer < c.layers; ++layer) evicts = evicts || layers.evicts(layer);
  if (evicts) {
    // Keys and the last queries as the host wants them; then rows on the move, and where they go.
    const std::int64_t window = std::min(run.prompt_tokens, plan.decode.whole("window"));
    pooled += run.prompt_tokens * k * (kElement + 4) + 4 * window * q;
    pooled += run.prompt_tokens * (2 * kElement * k + 16 * c.kv_heads);
  }
  if (plan.prefill.method().importance == Importance::kPooledBlocks) {
    // Means of blocks, and for each row of blocks its list and its place in the order of work.
    constexpr std::int64_t kSpare = 1024;  // means are laid out for whole steps of a kernel
    const std::int64_t rows = ceil_div(run.prompt_tokens, plan.prefill.whole("edge"));
    const std::int64_t listed = std::min(rows, std::max<std::int64_t>(3, plan.prefill.whole("blocks"))) *
                                plan.prefill.whole("edge") / kBlockTokens;
    pooled += 4 * (rows * q + (rows + kSpare) * k) + c.heads * rows * (4 * listed + 32);
  }
  const std::int64_t batch = run.batch;
  const std::int64_t ropes = c.family == ModelFamily::kGemma3 ? 2 : 1;
  const std::int64_t blocks = ceil_div(run.max_tokens, kBlockTokens);
  std::int64_t fixed = ropes * run.max_tokens * c.head_dim * 4 + 4 * (run.max_tokens + blocks) +
                       batch * (kElement * (3 * c.hidden + 3 * q + 2 * k + 3 * c.mlp) + 4 * vocab) +
                       batch * c.layers * c.kv_heads * (blocks * 4 + 16) + kPartials;
  if (layers.needs_page_bounds()) {  // scores and lists of pages, for each query head at most
    fixed += batch * c.heads * 8 * (blocks * kBlockTokens / kPageTokens + 64);
  }
  if (tp > 1) {
    pooled += 4 * chunk * c.hidden;  // parts of sums in fp32
    fixed += 4 * batch * c.hidden + kCollectives;
    // Queries of all ranks, and of the group of a KV head.
    if (layers.needs_page_bounds()) fixed += 2 * batch * kElement * tp * q;
  }
  needs.workspace = pooled + pooled / 4 + fixed;  // blocks of a pool are up to a quarter larger
  return needs;
}

}  // namespace tessera
