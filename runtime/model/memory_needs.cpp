#include "runtime/model/memory_needs.hpp"

#include <algorithm>
#include <cmath>

#include "attention/kept_tokens.hpp"
#include "parallel/partition.hpp"
#include "runtime/model/exchange_needs.hpp"
#include "runtime/model/tensor_plan.hpp"
#include "runtime/model/transformer.hpp"

namespace tessera {
namespace {

std::int64_t most_local_tokens(const SequencePartition& partition) {
  std::int64_t most = 0;
  for (int rank = 0; rank < partition.ranks(); ++rank) most = std::max(most, partition.tokens_of(rank));
  return most;
}

// Blocks first … last − 1 that the fullest rank holds.
std::int64_t most_blocks(const SequencePartition& partition, std::int64_t first, std::int64_t last) {
  std::int64_t most = 0;
  for (int rank = 0; rank < partition.ranks(); ++rank)
    most = std::max(most, owned_blocks(partition, rank, first, last));
  return most;
}

// Tokens that the heads of a rank keep together after prefill, at most, in an evicting layer; `local` of a
// head.
std::int64_t kept_rows(const ModelConfig& config, const LayerPlans& layers, const AttentionPlan& plan,
                       int layer, std::int64_t prompt_tokens, std::int64_t local, std::int64_t kv_heads) {
  const MethodSettings& decode = plan.decode;
  const std::int64_t forced = std::min(prompt_tokens, decode.whole("sinks") + decode.whole("recent"));
  std::int64_t tokens = decode.whole("tokens");
  if (decode.method().budget == BudgetRule::kAdaptiveLayers) {
    tokens = pyramid_tokens(tokens, decode.real("slope"), layers.index_of(layer), layers.count(), forced,
                            prompt_tokens);
  }
  tokens = std::max(tokens, forced);
  // Heads may compete for one budget, and the keys that win may all lie on one rank.
  const std::int64_t heads_of_budget =
      decode.method().budget == BudgetRule::kAdaptiveHeads ? config.kv_heads : kv_heads;
  return std::min(local * kv_heads, tokens * heads_of_budget);
}

// Bytes that the fullest rank packs and receives in an exchange, a KV head.
std::int64_t exchanged_bytes(const SequencePartition& partition, std::int64_t slot_bytes, std::int64_t window,
                             bool everything) {
  const LayerExchange exchange = layer_exchange(partition, window, ExchangeMode::kSelected);
  const auto& received = everything ? exchange.full_pages : exchange.needed_pages;
  const auto& sent = everything ? exchange.full_sent : exchange.needed_sent;
  std::int64_t most = 0;
  for (std::size_t rank = 0; rank < sent.size(); ++rank) most = std::max(most, sent[rank] + received[rank]);
  return most * slot_bytes * kPageTokens / kBlockTokens;
}

}  // namespace

std::int64_t kv_slots_needed(const ModelConfig& config, const RunShape& run, const AttentionPlan& plan) {
  const HeadShare share = head_share(config, 0, run.grid.tp);
  const LayerPlans layers(plan, config);
  const SequencePartition partition(run.prompt_tokens, run.grid.sp);
  const bool is_split = run.grid.sp > 1;
  const std::int64_t prompt_blocks = ceil_div(run.prompt_tokens, kBlockTokens);
  const std::int64_t all_blocks = ceil_div(run.max_tokens, kBlockTokens);
  // A shorter prompt cuts its chunks elsewhere: one chunk granule more on any rank.
  const std::int64_t granule = is_split ? 2 * kPartitionTokens / kBlockTokens : 0;
  const std::int64_t most = most_blocks(partition, 0, all_blocks) + granule;
  const std::int64_t prompt = std::min(most, most_blocks(partition, 0, prompt_blocks) + granule);
  const std::int64_t output = std::min(most, ceil_div(all_blocks - prompt_blocks + 1, run.grid.sp) + 1);

  std::int64_t kept = 0, passing = 0;  // slots of all KV heads
  for (int layer = 0; layer < config.layers; ++layer) {
    std::int64_t window = config.layer_window[static_cast<std::size_t>(layer)], sinks = 0;
    if (layers.slides(layer)) {
      window = plan.decode.whole("window");
      sinks = plan.decode.whole("sinks");
    }
    std::int64_t slots = most * share.kv_heads;
    if (layers.evicts(layer)) {
      const std::int64_t rows =
          kept_rows(config, layers, plan, layer, run.prompt_tokens, prompt * kBlockTokens, share.kv_heads);
      slots = std::min(slots, rows / kBlockTokens + share.kv_heads * (1 + output));
    } else if (window > 0) {
      slots = std::min(slots,
                       (ceil_div(window, kBlockTokens) + 1 + ceil_div(sinks, kBlockTokens)) * share.kv_heads);
    }
    kept += slots;
    passing = std::max(passing, most * share.kv_heads - slots);
  }
  const std::int64_t guests = is_split ? prompt_blocks * share.kv_heads : 0;
  return run.batch * kept + passing + guests;
}

namespace {

// Slots of one KV head of one sequence on one sp rank, in one layer.
struct HeldSlots {
  double after_prefill = 0;
  double at_end = 0;
};

HeldSlots held_slots(const ModelConfig& config, const RunShape& run, const AttentionPlan& plan,
                     const LayerPlans& layers, int layer, const SequencePartition& partition, int rank) {
  const std::int64_t stored = std::max(run.prompt_tokens, run.max_tokens - 1);  // the last token is only told
  const auto blocks_before = [](std::int64_t tokens) { return ceil_div(tokens, kBlockTokens); };
  const auto owned = [&](std::int64_t first, std::int64_t last) {
    return static_cast<double>(owned_blocks(partition, rank, first, last));
  };
  std::int64_t window = config.layer_window[static_cast<std::size_t>(layer)], sinks = 0;
  if (layers.slides(layer)) {
    window = plan.decode.whole("window");
    sinks = plan.decode.whole("sinks");
  }
  const double prompt = owned(0, blocks_before(run.prompt_tokens));
  if (layers.evicts(layer)) {
    const double kept = static_cast<double>(
        kept_rows(config, layers, plan, layer, run.prompt_tokens, run.prompt_tokens, config.kv_heads) /
        config.kv_heads);
    const double share = kept * prompt / static_cast<double>(blocks_before(run.prompt_tokens));
    const double answer = static_cast<double>(stored - run.prompt_tokens) / run.grid.sp;
    const auto slots = [](double rows) { return std::ceil(rows / kBlockTokens); };
    return {slots(share), slots(share + answer)};
  }
  if (window == 0) return {prompt, owned(0, blocks_before(stored))};
  // Blocks that lie wholly between the sinks and the window are given back.
  const auto shown = [&](std::int64_t length) {
    const std::int64_t first = std::max<std::int64_t>(0, length - window + 1) / kBlockTokens;
    const std::int64_t sink_blocks = std::min(first, blocks_before(sinks));
    return owned(0, sink_blocks) + owned(first, blocks_before(length));
  };
  return {shown(run.prompt_tokens), shown(stored)};
}

}  // namespace

std::int64_t kv_slots_used(const ModelConfig& config, const RunShape& run, const AttentionPlan& plan) {
  const HeadShare share = head_share(config, 0, run.grid.tp);
  const LayerPlans layers(plan, config);
  const SequencePartition partition(run.prompt_tokens, run.grid.sp);
  const std::int64_t prompt_blocks = ceil_div(run.prompt_tokens, kBlockTokens);
  ExchangeTable exchange(partition, plan.exchange);
  double most = 0;
  for (int rank = 0; rank < run.grid.sp; ++rank) {
    const auto prompt = static_cast<double>(owned_blocks(partition, rank, 0, prompt_blocks));
    double kept = 0, at_end = 0, in_prefill = 0;
    for (int layer = 0; layer < config.layers; ++layer) {
      const LayerExchange& fetched = exchange.of(config.layer_window[static_cast<std::size_t>(layer)]);
      const auto guests = static_cast<double>(fetched.guest_blocks[static_cast<std::size_t>(rank)]);
      const HeldSlots held = held_slots(config, run, plan, layers, layer, partition, rank);
      in_prefill = std::max(in_prefill, kept + prompt + guests);
      kept += held.after_prefill;
      at_end += held.at_end;
    }
    // The last prompt comes while the others decode.
    most = std::max({most, run.batch * at_end, (run.batch - 1) * at_end + in_prefill});
  }
  return std::llround(most) * share.kv_heads;
}

std::int64_t workspace_bytes_needed(const ModelConfig& config, const RunShape& run,
                                    const AttentionPlan& plan) {
  const HeadShare share = head_share(config, 0, run.grid.tp);
  const LayerPlans layers(plan, config);
  const SequencePartition partition(run.prompt_tokens, run.grid.sp);
  const std::int64_t local = most_local_tokens(partition);
  const std::int64_t chunk = std::min(kChunkTokens, local);
  const std::int64_t whole = local * (config.hidden + 2 * share.heads * config.head_dim);
  const std::int64_t chunks =
      chunk * (2 * config.hidden + 2 * config.mlp / run.grid.tp + 2 * share.kv_heads * config.head_dim);
  const std::int64_t ropes = config.family == ModelFamily::kGemma3 ? 2 : 1;
  const std::int64_t logits = run.batch * (config.hidden + ceil_div(config.vocab, run.grid.tp));
  std::int64_t activations = whole + chunks;
  bool selects = false, sparse = false;
  std::int64_t widest = -1;  // window of the layer whose dense exchange is the largest; 0: none is the widest
  for (int layer = 0; layer < config.layers; ++layer) {
    selects = selects || layers.sparse_prefill(layer) || layers.evicts(layer);
    sparse = sparse || layers.sparse_prefill(layer);
    const std::int64_t window = config.layer_window[static_cast<std::size_t>(layer)];
    if (widest != 0) widest = window == 0 ? 0 : std::max(widest, window);
  }
  if (selects) activations += local * share.kv_heads * config.head_dim;
  std::int64_t bytes = static_cast<std::int64_t>(size_of(run.dtype)) * activations +
                       4 * (ropes * run.max_tokens * config.head_dim + logits);
  if (run.grid.sp > 1) {
    const std::int64_t slot_bytes =
        2 * kBlockTokens * config.head_dim * static_cast<std::int64_t>(size_of(run.kv_dtype));
    const std::int64_t needed = exchanged_bytes(partition, slot_bytes, widest, false);
    const std::int64_t everything = exchanged_bytes(partition, slot_bytes, 0, true);
    const bool may_gather = plan.exchange == ExchangeMode::kGather || sparse ||
                            (plan.exchange == ExchangeMode::kAuto &&
                             static_cast<double>(needed) >= kGatherShare * static_cast<double>(everything));
    bytes += share.kv_heads * (may_gather ? everything : needed);
    bytes += 4 * local * share.heads * (config.head_dim + 2);  // outputs and log-sum-exps of two passes
  }
  return bytes;
}

std::int64_t selection_bytes_needed(const ModelConfig& config, const RunShape& run,
                                    const AttentionPlan& plan) {
  const HeadShare share = head_share(config, 0, run.grid.tp);
  const LayerPlans layers(plan, config);
  const std::int64_t local = most_local_tokens(SequencePartition(run.prompt_tokens, run.grid.sp));
  const Method& prefill = plan.prefill.method();
  std::int64_t bytes = 0;
  const bool sparse_prefill = prefill.unit != SelectUnit::kAll && layers.count() > 0;
  if (sparse_prefill) {
    // Entries of rows that see every block: half of all under the causal mask, twice while they are put
    // together.
    const std::int64_t edge =
        prefill.unit == SelectUnit::kBlocks ? plan.prefill.whole("edge") : kQueryBlockRows;
    const std::int64_t rows = ceil_div(local, std::min<std::int64_t>(edge, kQueryBlockRows));
    bytes += share.heads * rows * ceil_div(run.prompt_tokens, kBlockTokens) * 4;
  }
  const bool window_scores = prefill.importance == Importance::kWindowSoftmax ||
                             plan.decode.method().importance == Importance::kWindowSoftmax;
  if (window_scores)
    bytes += share.heads * (local + run.prompt_tokens) * 8 * 2;  // column and diagonal sums, their order
  if (prefill.importance == Importance::kAntidiagonals && run.grid.sp > 1)
    bytes += run.prompt_tokens * config.head_dim * 4;  // all keys of one head
  return bytes;
}

}  // namespace tessera
