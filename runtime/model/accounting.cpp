#include "runtime/model/accounting.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/core/tensor.hpp"
#include "runtime/model/tensor_plan.hpp"

namespace tessera {
namespace {

// The study's formula (FACTS.md, "Cost model"), batch 1: kept as printed so that figures compare, though its
// attention term counts L² pairs and not the causal half, and no estimator. density ρ = 1 − s. The study
// counts decoding in bytes, not operations.
double paper_prefill_flops(const ModelConfig& c, double tokens, double density) {
  const double n = static_cast<double>(c.layers), d = static_cast<double>(c.hidden);
  const double h = static_cast<double>(c.heads), head = static_cast<double>(c.head_dim);
  const double kv = static_cast<double>(c.kv_heads), mlp = static_cast<double>(c.mlp);
  const double vocab = static_cast<double>(c.vocab);
  const double embed = 2 * tokens * d;
  const double logits = 2 * tokens * d * vocab;
  const double mlps = 2 * n * tokens * mlp * (3 * d + 1);
  const double attention =
      n * (2 * tokens * d * (2 * d + 2 * head * kv) + density * h * tokens * tokens * (4 * head + 3));
  return embed + attention + mlps + logits;
}

// Where the counts of a rank lie among those of the whole model.
struct RankHeads {
  HeadShare share;
  bool is_first_replica = true;  // of its KV heads: tp ranks past their number hold copies

  RankHeads(const ModelConfig& config, int tp_rank, int tp)
      : share(head_share(config, tp_rank, tp)),
        is_first_replica(tp_rank == 0 ||
                         head_share(config, tp_rank - 1, tp).first_kv_head != share.first_kv_head) {}
};

// whole[layer, first + i] += part[layer, i]; an empty part counts nothing.
void add_heads(const std::vector<std::uint64_t>& part, std::int64_t layers, std::int64_t first,
               std::int64_t count, std::int64_t whole_count, std::vector<std::uint64_t>& whole) {
  if (part.empty()) return;
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    for (std::int64_t i = 0; i < count; ++i) {
      whole[static_cast<std::size_t>(layer * whole_count + first + i)] +=
          part[static_cast<std::size_t>(layer * count + i)];
    }
  }
}

void add_rank_counts(const CostInput& in, const RankReport& rank, SampleCost& cost) {
  const ModelConfig& c = *in.config;
  const RankHeads heads(c, rank.tp, in.tp);
  const AttentionCounts& counts = rank.attention;
  const auto add = [&](const std::vector<std::uint64_t>& part, std::vector<std::uint64_t>& whole) {
    add_heads(part, c.layers, heads.share.first_head, heads.share.heads, c.heads, whole);
  };
  add(counts.pairs_visible, cost.pairs_visible);
  add(counts.pairs_executed, cost.pairs_executed);
  add(counts.kv_read, cost.kv_read);
  add(counts.kv_read_first, cost.kv_read_first);
  if (heads.is_first_replica) {
    add_heads(counts.kv_kept, c.layers, heads.share.first_kv_head, heads.share.kv_heads, c.kv_heads,
              cost.kv_kept);
  }
}

// From the ranks' sums to means and relative errors.
void add_diagnosis_of(const CostInput& in, SampleCost& cost) {
  const ModelConfig& c = *in.config;
  const std::size_t size = static_cast<std::size_t>(kPhases * c.layers * c.heads);
  std::vector<double> mass(size, 0.0), error(size, 0.0), norm(size, 0.0), rows(size, 0.0);
  bool any = false;
  for (const RankReport& rank : in.ranks) {
    const DiagnosisSums& sums = rank.diagnosis;
    if (sums.rows.empty()) continue;
    any = true;
    const HeadShare share = head_share(c, rank.tp, in.tp);
    for (std::int64_t i = 0; i < kPhases * c.layers; ++i) {
      for (std::int64_t h = 0; h < share.heads; ++h) {
        const auto from = static_cast<std::size_t>(i * share.heads + h);
        const auto to = static_cast<std::size_t>(i * c.heads + share.first_head + h);
        mass[to] += sums.kept_mass[from];
        error[to] += sums.error[from];
        norm[to] += sums.norm[from];
        rows[to] += sums.rows[from];
      }
    }
  }
  if (!any) return;
  const double missing = std::numeric_limits<double>::quiet_NaN();
  for (std::size_t i = 0; i < size; ++i) {
    cost.kept_mass.push_back(rows[i] > 0 ? mass[i] / rows[i] : missing);
    cost.output_error.push_back(norm[i] > 0 ? std::sqrt(error[i] / norm[i]) : missing);
  }
}

struct EstimatorCost {
  double bytes = 0;
  double flops = 0;
};

// What an estimator must read and multiply for one layer of a prompt of S tokens: each query row and key row
// that it looks at once, two operations a channel of a score.
EstimatorCost prompt_estimator(const ModelConfig& c, const MethodSettings& settings, double tokens) {
  const double heads = static_cast<double>(c.heads), kv_heads = static_cast<double>(c.kv_heads);
  const double row = 4.0 * static_cast<double>(c.head_dim), score = 2.0 * static_cast<double>(c.head_dim);
  switch (settings.method().importance) {
    case Importance::kWindowSoftmax: {
      const double w = std::min(tokens, static_cast<double>(settings.whole("window")));
      const double pairs = w * tokens - w * (w - 1) / 2;
      return {row * (w * heads + tokens * kv_heads), score * heads * pairs};
    }
    case Importance::kPooledBlocks: {
      const double blocks = std::ceil(tokens / static_cast<double>(settings.whole("edge")));
      return {row * tokens * (heads + kv_heads), score * heads * blocks * (blocks + 1) / 2};
    }
    case Importance::kAntidiagonals: {
      const double stride = static_cast<double>(settings.whole("stride"));
      const double groups = std::ceil(tokens / stride);
      return {row * tokens * (heads + kv_heads), score * stride * heads * groups * (groups + 1) / 2};
    }
    case Importance::kNone:
    case Importance::kFixed:
    case Importance::kPageBounds:
      return {};
  }
  return {};
}

// One decode step of one layer: both bounds of every finished page before the current one, for each list.
EstimatorCost step_estimator(const ModelConfig& c, const MethodSettings& settings, std::int64_t position,
                             double element_bytes) {
  if (settings.method().importance != Importance::kPageBounds) return {};
  const double pages = static_cast<double>(position / kPageTokens);
  const bool threshold = settings.method().budget == BudgetRule::kThreshold;
  const bool by_query_head = threshold || settings.whole("per_query_head") != 0;
  const double scored = pages * static_cast<double>(by_query_head ? c.heads : c.kv_heads);
  const double dim = static_cast<double>(c.head_dim);
  return {pages * static_cast<double>(c.kv_heads) * 2 * dim * element_bytes, scored * 4 * dim};
}

}  // namespace

std::uint64_t causal_pairs(std::int64_t tokens, std::int64_t window) {
  const auto n = static_cast<std::uint64_t>(tokens);
  if (window <= 0 || window >= tokens) return n * (n + 1) / 2;
  const auto w = static_cast<std::uint64_t>(window);
  return w * (w + 1) / 2 + (n - w) * w;
}

DensePairs dense_pairs(const SequencePartition& partition, int rank, std::int64_t window,
                       std::int64_t first_executed) {
  DensePairs pairs;
  const std::vector<std::int32_t> rows = partition.positions_of(rank);
  for (std::size_t first = 0; first < rows.size(); first += kQueryBlockRows) {
    const std::size_t last = std::min(rows.size(), first + kQueryBlockRows) - 1;
    const std::int64_t oldest = window > 0 ? std::max<std::int64_t>(0, rows[first] - window + 1) : 0;
    const std::int64_t blocks = rows[last] / kBlockTokens - oldest / kBlockTokens + 1;
    if (static_cast<std::int64_t>(first) >= first_executed) {
      pairs.executed +=
          static_cast<std::uint64_t>((last - first + 1) * static_cast<std::size_t>(blocks) * kBlockTokens);
    }
    for (std::size_t row = first; row <= last; ++row) {
      const std::int64_t seen = std::int64_t{rows[row]} + 1;
      pairs.visible += static_cast<std::uint64_t>(window > 0 ? std::min(seen, window) : seen);
    }
  }
  return pairs;
}

SampleCost cost_of(const CostInput& in) {
  const ModelConfig& c = *in.config;
  const LayerPlans layers(*in.plan, c);
  const auto size = static_cast<std::size_t>(c.layers * c.heads);
  SampleCost cost;
  for (auto* values : {&cost.pairs_visible, &cost.pairs_executed, &cost.kv_read, &cost.kv_read_first}) {
    values->assign(size, 0);
  }
  cost.kv_kept.assign(static_cast<std::size_t>(c.layers * c.kv_heads), 0);
  for (const RankReport& rank : in.ranks) add_rank_counts(in, rank, cost);

  const double prompt = static_cast<double>(in.prompt_tokens);
  const double element_bytes = static_cast<double>(in.kv_element_bytes);
  EstimatorCost prompt_estimate, step_estimate;
  for (int layer = 0; layer < c.layers; ++layer) {
    const std::int64_t window = c.layer_window[static_cast<std::size_t>(layer)];
    std::uint64_t dense = 0, dense_first = 0;
    for (const std::int64_t position : in.decode_positions) {
      const auto held =
          static_cast<std::uint64_t>(window > 0 ? std::min(position + 1, window) : position + 1);
      if (dense == 0) dense_first = held;
      dense += held;
      if (!layers.reads_pages(layer)) continue;
      const EstimatorCost step = step_estimator(c, in.plan->decode, position, element_bytes);
      step_estimate.bytes += step.bytes;
      step_estimate.flops += step.flops;
    }
    const auto heads = static_cast<std::size_t>(c.heads);
    cost.pairs_causal.insert(cost.pairs_causal.end(), heads, causal_pairs(in.prompt_tokens, window));
    cost.kv_dense.insert(cost.kv_dense.end(), heads, dense);
    cost.kv_dense_first.insert(cost.kv_dense_first.end(), heads, dense_first);
    for (const auto& [selects, settings] : {std::pair{layers.sparse_prefill(layer), &in.plan->prefill},
                                            {layers.evicts(layer), &in.plan->decode}}) {
      if (!selects) continue;
      const EstimatorCost estimate = prompt_estimator(c, *settings, prompt);
      prompt_estimate.bytes += estimate.bytes;
      prompt_estimate.flops += estimate.flops;
    }
  }

  double pairs = 0, read = 0, read_by_lists = 0;  // over layers and heads
  const std::int64_t group = c.heads / c.kv_heads;
  const bool by_query_head = in.plan->decode.method().importance == Importance::kPageBounds &&
                             in.plan->decode.method().budget == BudgetRule::kUniform &&
                             in.plan->decode.whole("per_query_head") != 0;
  for (std::size_t i = 0; i < size; ++i) {
    pairs += static_cast<double>(cost.pairs_visible[i]);
    read += static_cast<double>(cost.kv_read[i]);
    // Heads of a group that read the same rows read them together.
    if (by_query_head || i % static_cast<std::size_t>(group) == 0)
      read_by_lists += static_cast<double>(cost.kv_read[i]);
  }
  const double dim = static_cast<double>(c.head_dim);
  const double steps = static_cast<double>(in.decode_positions.size());
  const double row_bytes = 2.0 * dim * element_bytes;
  const double head_weights = static_cast<double>(c.vocab * c.hidden);
  const double layer_weights =
      static_cast<double>(c.layers) *
      static_cast<double>(c.hidden * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + 3 * c.hidden * c.mlp);

  const auto whole = [](double value) { return static_cast<std::uint64_t>(value); };
  const double weight_bytes = static_cast<double>(in.weight_bytes);
  cost.bytes_weights = {whole(weight_bytes), whole(in.weight_passes * weight_bytes)};
  cost.bytes_kv = {whole(prompt * row_bytes * static_cast<double>(c.kv_heads * c.layers)),
                   whole(read_by_lists * row_bytes)};
  cost.bytes_estimator = {whole(prompt_estimate.bytes), whole(step_estimate.bytes)};
  cost.flops_attention = {whole(4 * dim * pairs), whole(4 * dim * read)};
  cost.flops_estimate = {whole(prompt_estimate.flops), whole(step_estimate.flops)};
  cost.flops_linear = {whole(2 * prompt * layer_weights + 2 * head_weights),
                       whole(2 * steps * (layer_weights + head_weights))};
  double causal = 0;
  for (const std::uint64_t value : cost.pairs_causal) causal += static_cast<double>(value);
  cost.flops_paper = {whole(paper_prefill_flops(c, prompt, causal > 0 ? pairs / causal : 1)), 0};
  add_diagnosis_of(in, cost);
  return cost;
}

}  // namespace tessera
