#include "runtime/model/accounting.hpp"

#include <algorithm>

#include "runtime/core/tensor.hpp"

namespace tessera {
namespace {

// Pairs that the dense kernel computes: whole tiles of M rows by B keys.
std::uint64_t executed_pairs(const SequencePartition& partition, std::int64_t window) {
  std::uint64_t pairs = 0;
  for (int rank = 0; rank < partition.ranks(); ++rank) {
    const std::vector<std::int32_t> rows = partition.positions_of(rank);
    for (std::size_t first = 0; first < rows.size(); first += kQueryBlockRows) {
      const std::size_t last = std::min(rows.size(), first + kQueryBlockRows) - 1;
      const std::int64_t oldest = window > 0 ? std::max<std::int64_t>(0, rows[first] - window + 1) : 0;
      const std::int64_t blocks = rows[last] / kBlockTokens - oldest / kBlockTokens + 1;
      pairs +=
          static_cast<std::uint64_t>((last - first + 1) * static_cast<std::size_t>(blocks) * kBlockTokens);
    }
  }
  return pairs;
}

// The study's formula (FACTS.md, "Cost model"), dense (ρ = 1), batch 1: kept as printed so that figures
// compare, though its attention term counts L² pairs and not the causal half. The study counts decoding in
// bytes, not operations.
double paper_prefill_flops(const ModelConfig& c, double tokens) {
  const double n = static_cast<double>(c.layers), d = static_cast<double>(c.hidden);
  const double h = static_cast<double>(c.heads), head = static_cast<double>(c.head_dim);
  const double kv = static_cast<double>(c.kv_heads), mlp = static_cast<double>(c.mlp);
  const double vocab = static_cast<double>(c.vocab);
  const double embed = 2 * tokens * d;
  const double logits = 2 * tokens * d * vocab;
  const double mlps = 2 * n * tokens * mlp * (3 * d + 1);
  const double attention =
      n * (2 * tokens * d * (2 * d + 2 * head * kv) + h * tokens * tokens * (4 * head + 3));
  return embed + attention + mlps + logits;
}

}  // namespace

std::uint64_t causal_pairs(std::int64_t tokens, std::int64_t window) {
  const auto n = static_cast<std::uint64_t>(tokens);
  if (window <= 0 || window >= tokens) return n * (n + 1) / 2;
  const auto w = static_cast<std::uint64_t>(window);
  return w * (w + 1) / 2 + (n - w) * w;
}

SampleCost dense_cost(const CostInput& in) {
  const ModelConfig& c = *in.config;
  const SequencePartition partition(in.prompt_tokens, in.sp);
  const std::uint64_t full_executed = executed_pairs(partition, 0);
  SampleCost cost;
  double pairs = 0, decode_tokens = 0;  // over layers, of one head
  for (int layer = 0; layer < c.layers; ++layer) {
    const std::int64_t window = c.layer_window[layer];
    const std::uint64_t visible = causal_pairs(in.prompt_tokens, window);
    const std::uint64_t executed = window > 0 ? executed_pairs(partition, window) : full_executed;
    std::uint64_t read = 0;
    for (std::int64_t position : in.decode_positions) {
      read += static_cast<std::uint64_t>(window > 0 ? std::min(position + 1, window) : position + 1);
    }
    const std::size_t heads = static_cast<std::size_t>(c.heads);
    cost.pairs_visible.insert(cost.pairs_visible.end(), heads, visible);
    cost.pairs_causal.insert(cost.pairs_causal.end(), heads, visible);
    cost.pairs_executed.insert(cost.pairs_executed.end(), heads, executed);
    cost.kv_read.insert(cost.kv_read.end(), heads, read);
    cost.kv_dense.insert(cost.kv_dense.end(), heads, read);
    const std::int64_t kept = window > 0 ? std::min(in.prompt_tokens, window) : in.prompt_tokens;
    cost.kv_kept.insert(cost.kv_kept.end(), static_cast<std::size_t>(c.kv_heads),
                        static_cast<std::uint64_t>(kept));
    pairs += static_cast<double>(visible);
    decode_tokens += static_cast<double>(read);
  }
  const double heads = static_cast<double>(c.heads), dim = static_cast<double>(c.head_dim);
  const double steps = static_cast<double>(in.decode_positions.size());
  const double prompt = static_cast<double>(in.prompt_tokens);
  const double kv_bytes_a_token = 2.0 * static_cast<double>(c.kv_heads * c.head_dim * in.kv_element_bytes);
  const double head_weights = static_cast<double>(c.vocab * c.hidden);
  const double layer_weights =
      static_cast<double>(c.layers) *
      static_cast<double>(c.hidden * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + 3 * c.hidden * c.mlp);

  const auto whole = [](double value) { return static_cast<std::uint64_t>(value); };
  const double weight_bytes = static_cast<double>(in.weight_bytes);
  cost.bytes_weights = {whole(weight_bytes), whole(in.weight_passes * weight_bytes)};
  cost.bytes_kv = {whole(prompt * kv_bytes_a_token * static_cast<double>(c.layers)),
                   whole(decode_tokens * kv_bytes_a_token)};
  cost.bytes_estimator = {0, 0};
  cost.flops_attention = {whole(4 * dim * heads * pairs), whole(4 * dim * heads * decode_tokens)};
  cost.flops_estimate = {0, 0};
  cost.flops_linear = {whole(2 * prompt * layer_weights + 2 * head_weights),
                       whole(2 * steps * (layer_weights + head_weights))};
  cost.flops_paper = {whole(paper_prefill_flops(c, prompt)), 0};
  return cost;
}

}  // namespace tessera
