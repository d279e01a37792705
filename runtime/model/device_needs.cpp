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

// What window sums are made in: sums of chunks of keys, and a number for each row of the window.
std::int64_t window_sum_bytes(const ModelConfig& c, std::int64_t tokens, std::int64_t window) {
  constexpr std::int64_t kTile = 128;
  return c.heads * ceil_div(window, kTile) * kTile * (8 * ceil_div(tokens, kTile) + 4);
}

// Of vertical_slash and flexprefill: sums of a layer, what they are made in, and lists of any budget, since
// calibration tries them all; then the order of work and the pages that a row sees.
std::int64_t line_bytes(const ModelConfig& c, std::int64_t tokens, const AttentionPlan& plan) {
  const std::int64_t window = std::min(tokens, plan.prefill.whole("window"));
  const std::int64_t lists = plan.share_group ? c.kv_heads : c.heads;
  const std::int64_t rows = ceil_div(tokens, kQueryBlockRows);
  const std::int64_t sums = lists * tokens * 16 + window_sum_bytes(c, tokens, window);
  const std::int64_t chosen = lists * (8 * tokens + 2 * rows * (rows + 1) + 24 * rows + 16);
  const std::int64_t order = c.heads * rows * 16 + lists * rows * (8 + 4 * ceil_div(tokens, 512));
  const std::int64_t counts = lists * (tokens / 4 + 64) + 16 * lists * c.layers;
  return sums + chosen + order + counts + 12 * rows;
}

// Of streaming: one list, and the same order of work.
std::int64_t window_bytes(const ModelConfig& c, std::int64_t tokens, const AttentionPlan& plan) {
  const std::int64_t rows = ceil_div(tokens, kQueryBlockRows);
  const std::int64_t listed = std::min(rows, plan.prefill.whole("window") / kBlockTokens + 2);
  return rows * (4 * listed + 8 + 12 + 8 + 4 * ceil_div(tokens, 512)) + c.heads * rows * 16 + 8 * tokens;
}

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
    const std::int64_t window = std::min(run.prompt_tokens, plan.decode.whole("window"));
    if (window <= cuda::kMostDeviceWindow) {
      // Importance, as it is pooled, and what was chosen, twice; what it is summed in.
      pooled += c.kv_heads * (run.prompt_tokens * 24 + 64) + window_sum_bytes(c, run.prompt_tokens, window);
    } else {  // keys and the last queries as the host wants them
      pooled += run.prompt_tokens * k * (kElement + 4) + 4 * window * q;
    }
    // Rows on the move, and where they go.
    pooled += run.prompt_tokens * (2 * kElement * k + 16 * c.kv_heads);
  }
  if (plan.prefill.method().importance == Importance::kPooledBlocks) {
    // Means of blocks, and for each row of blocks its list and its place in the order of work.
    constexpr std::int64_t kSpare = 1024;  // means are laid out for whole steps of a kernel
    const std::int64_t edge = plan.prefill.whole("edge");
    const std::int64_t rows = ceil_div(run.prompt_tokens, edge);
    const std::int64_t listed = std::min(rows, std::max<std::int64_t>(3, plan.prefill.whole("blocks"))) *
                                std::max<std::int64_t>(1, edge / kBlockTokens);
    pooled += 4 * (rows * q + (rows + kSpare) * k) + c.heads * rows * (4 * listed + 32);
    if (edge < kBlockTokens) {  // scores of some rows, in steps of 128
      constexpr std::int64_t kStep = 128, kChunkBytes = 128 << 20;
      const std::int64_t row = ceil_div(rows, kStep) * kStep;
      const std::int64_t row_bytes = 4 * c.heads * row;
      pooled += std::min(std::max(kChunkBytes, kStep * row_bytes), row * row_bytes);
    }
  }
  if (plan.prefill.method().unit == SelectUnit::kColumnsAndDiagonals) {
    pooled += line_bytes(c, run.prompt_tokens, plan);
  } else if (plan.prefill.method().unit == SelectUnit::kLocalWindow) {
    pooled += window_bytes(c, run.prompt_tokens, plan);
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
