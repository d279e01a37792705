// What a sample cost: pairs and cache rows as the ranks counted them, and from these bytes and floating-point
// operations by definition. Integer numerators and denominators, so that any ratio can be derived again
// offline.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "io/model_config.hpp"
#include "parallel/partition.hpp"
#include "runtime/model/attention_plan.hpp"
#include "runtime/model/completion.hpp"

namespace tessera {

struct SampleCost {
  // (L, H of the whole model)
  std::vector<std::uint64_t> pairs_visible;   // (query, key) pairs that the method attends to in prefill
  std::vector<std::uint64_t> pairs_causal;    // pairs under the causal mask, and the window in window layers
  std::vector<std::uint64_t> pairs_executed;  // pairs computed, tile waste included
  std::vector<std::uint64_t> kv_read;         // tokens read by all decode steps
  std::vector<std::uint64_t> kv_read_first;   // by the first of them
  std::vector<std::uint64_t> kv_dense;        // tokens that a dense cache would have read
  std::vector<std::uint64_t> kv_dense_first;
  std::vector<std::uint64_t> kv_kept;  // (L, K of the whole model) tokens kept after prefill
  // (Ph). Bytes of one copy of the weights, embedding table included, and of all KV heads: what one rank
  // alone would read. Estimators: queries, keys or page bounds that they must read at least once. Operations
  // of the whole model.
  std::vector<std::uint64_t> bytes_weights, bytes_kv, bytes_estimator;
  std::vector<std::uint64_t> flops_attention, flops_estimate, flops_linear, flops_paper;
  // (Ph, L, H of the whole model), NaN where not measured; empty without --diagnose.
  std::vector<double> kept_mass;     // mean share of the dense softmax on the keys that were seen
  std::vector<double> output_error;  // ‖out − dense out‖ / ‖dense out‖
};

// Causal pairs of rows 0 … tokens−1: Σ min(i + 1, window), window = 0 meaning none.
std::uint64_t causal_pairs(std::int64_t tokens, std::int64_t window);

// Of the rows of one sp rank and one head under the dense kernel, window = 0 meaning none.
struct DensePairs {
  std::uint64_t visible = 0;
  std::uint64_t executed = 0;  // whole tiles of M rows by B keys
};
// first_executed: of the rank's rows, a multiple of M; those before it are not computed.
DensePairs dense_pairs(const SequencePartition& partition, int rank, std::int64_t window,
                       std::int64_t first_executed = 0);

struct CostInput {
  const ModelConfig* config = nullptr;
  const AttentionPlan* plan = nullptr;
  int tp = 1;  // ranks
  std::int64_t prompt_tokens = 0;
  std::span<const std::int64_t> decode_positions;  // of each decode step
  std::span<const RankReport> ranks;               // what each rank of the group counted
  double weight_passes = 0;       // decode steps, each divided by the sequences that shared it
  std::int64_t weight_bytes = 0;  // of the whole model
  std::int64_t kv_element_bytes = 4;
};

SampleCost cost_of(const CostInput& input);

}  // namespace tessera
