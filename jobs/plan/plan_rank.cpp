// The work and the traffic of one rank: what its share of tokens and heads makes of the counts of the model.
#include <algorithm>
#include <cmath>
#include <map>

#include "jobs/plan/plan_parts.hpp"
#include "runtime/model/exchange_needs.hpp"
#include "runtime/model/tensor_plan.hpp"

namespace tessera {
namespace {

// Bytes that each of n ranks receives in an all-reduce of `bytes`, as a ring or a reduce-scatter with an
// all-gather: 2(n − 1)/n of it (Patarasuk and Yuan, 2009).
double all_reduce_bytes(double bytes, int ranks) {
  return bytes * 2 * (ranks - 1) / ranks;
}

// Elements of the matrices that a rank multiplies a token with, and (last) the logits.
struct MatrixElements {
  double layers = 0;
  double logits = 0;
};

MatrixElements matrix_elements(const ModelConfig& config, int tp) {
  MatrixElements elements;
  for (const TensorSpec& spec : declare_tensors(config)) {
    if (spec.is_vector) continue;
    const Slice slice = slice_of(spec, config, 0, tp);
    const double count = static_cast<double>(slice.rows() * slice.columns());
    if (spec.layer >= 0) elements.layers += count;
    const TensorRole logits = config.tied_embeddings ? TensorRole::kEmbedding : TensorRole::kLmHead;
    if (spec.role == logits) elements.logits = count;
  }
  return elements;
}

// Bytes of the weights of a rank that every step reads: an embedding table that is not also the logits'
// matrix gives a row a token.
double step_weight_bytes(const PlanProblem& p, int tp) {
  const std::vector<TensorSpec> specs = declare_tensors(p.config);
  double bytes = 0;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].role == TensorRole::kEmbedding && !p.config.tied_embeddings) continue;
    const Slice slice = slice_of(specs[i], p.config, 0, tp);
    bytes += static_cast<double>(slice.rows() * slice.columns()) *
             static_cast<double>(size_of(p.weights.dtypes.at(i)));
  }
  return bytes;
}

// Bytes of activations that pass through memory beside the matrix products, for one token in all layers: two
// norms that add to the residual stream (two rows in, two out), rope (queries, keys and values in and out),
// and the MLP's product of its two halves (two rows in, one out). Heads and MLP are split by tp, the stream
// is not.
double pass_bytes(const PlanProblem& p, int tp) {
  const ModelConfig& c = p.config;
  const HeadShare share = head_share(c, 0, tp);
  const double stream = 2 * 4 * static_cast<double>(c.hidden);
  const double heads = 2 * static_cast<double>((share.heads + 2 * share.kv_heads) * c.head_dim);
  const double mlp = 3 * static_cast<double>(c.mlp) / tp;
  return static_cast<double>(c.layers) * static_cast<double>(size_of(p.dtype)) * (stream + heads + mlp);
}

// Share of the model's visible pairs that the busiest sp rank computes, a head.
double busiest_share(const PlanProblem& p, const SequencePartition& partition) {
  const LayerPlans layers(p.attention, p.config);
  std::map<std::int64_t, double> layers_of_window;  // weighted by what is visible
  for (int layer = 0; layer < p.config.layers; ++layer) {
    layers_of_window[p.config.layer_window[static_cast<std::size_t>(layer)]] +=
        layers.sparse_prefill(layer) ? 1 - p.prefill.value : 1;
  }
  double most = 0, all = 0;
  for (int rank = 0; rank < partition.ranks(); ++rank) {
    double pairs = 0;
    for (const auto& [window, weight] : layers_of_window)
      pairs += weight * static_cast<double>(dense_pairs(partition, rank, window).visible);
    most = std::max(most, pairs);
    all += pairs;
  }
  return all > 0 ? most / all : 1;
}

// Pages of one KV head that the rows of a rank need of others in a sparse layer.
//   streaming: what its window and its sinks show, since no row chooses.
//   others:    rows of 64 queries, and the heads of a group, are taken to choose independently, each page
//              with the probability d = 1 − s that a pair is visible: 1 − (1 − d)^(rows · heads) of what
//              dense attention needs. Choices that lie together need less.
double sparse_pages(const PlanProblem& p, const SequencePartition& partition, ExchangeTable& windows,
                    int rank, double dense) {
  const MethodSettings& prefill = p.attention.prefill;
  if (prefill.method().unit == SelectUnit::kLocalWindow) {
    // The first row of a query block names the window, rounded out to pages.
    const std::int64_t window = prefill.whole("window") + kPageTokens - 1;
    const LayerExchange& local = windows.of(window);
    const double sinks = rank == 0 ? 0 : std::ceil(static_cast<double>(prefill.whole("sinks")) / kPageTokens);
    return std::min(dense, static_cast<double>(local.needed_pages[static_cast<std::size_t>(rank)]) + sinks);
  }
  const double rows = std::ceil(static_cast<double>(partition.tokens_of(rank)) / kQueryBlockRows);
  const double heads = p.attention.share_group ? 1 : static_cast<double>(p.config.heads / p.config.kv_heads);
  return dense * (1 - std::pow(std::clamp(p.prefill.value, 0.0, 1.0), rows * heads));
}

// Keys and values that the rank that fetches most receives, over all layers.
void fill_exchange(const PlanProblem& p, const SequencePartition& partition, double kv_heads, GridPlan& g) {
  const double page_bytes = 2.0 * kPageTokens * static_cast<double>(p.config.head_dim) *
                            static_cast<double>(size_of(p.kv_dtype)) * kv_heads;
  const LayerPlans layers(p.attention, p.config);
  ExchangeTable table(partition, p.attention.exchange), windows(partition, ExchangeMode::kSelected);
  const auto ranks = static_cast<std::size_t>(partition.ranks());
  std::vector<double> needed(ranks, 0), full(ranks, 0), taken(ranks, 0);
  for (int layer = 0; layer < p.config.layers; ++layer) {
    const LayerExchange& dense = table.of(p.config.layer_window[static_cast<std::size_t>(layer)]);
    std::vector<double> pages(ranks);
    double pages_needed = 0, pages_full = 0;
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      pages[rank] = static_cast<double>(dense.needed_pages[rank]);
      if (layers.sparse_prefill(layer))
        pages[rank] = sparse_pages(p, partition, windows, static_cast<int>(rank), pages[rank]);
      pages_needed += pages[rank];
      pages_full += static_cast<double>(dense.full_pages[rank]);
    }
    const bool gathers =
        p.attention.exchange == ExchangeMode::kGather ||
        (p.attention.exchange == ExchangeMode::kAuto && pages_needed >= kGatherShare * pages_full);
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      const double everything = static_cast<double>(dense.full_pages[rank]);
      needed[rank] += pages[rank] * page_bytes;
      full[rank] += everything * page_bytes;
      taken[rank] += (gathers ? everything : pages[rank]) * page_bytes;
    }
  }
  g.bytes_needed = *std::max_element(needed.begin(), needed.end());
  g.bytes_full = *std::max_element(full.begin(), full.end());
  g.bytes_exchanged = *std::max_element(taken.begin(), taken.end());
}

}  // namespace

void fill_prefill(const PlanProblem& p, const Machine& machine, const SampleCost& cost, GridPlan& g) {
  const SequencePartition partition(p.length, g.shape.sp);
  const HeadShare share = head_share(p.config, 0, g.shape.tp);
  double tokens = 0;
  for (int rank = 0; rank < g.shape.sp; ++rank)
    tokens = std::max(tokens, static_cast<double>(partition.tokens_of(rank)));
  const double group = static_cast<double>(g.shape.tp * g.shape.sp);

  const MatrixElements matrices = matrix_elements(p.config, g.shape.tp);
  g.flops_linear = 2 * (tokens * matrices.layers + matrices.logits);  // two operations an element
  g.bytes_passes = tokens * pass_bytes(p, g.shape.tp);
  g.flops_attention = static_cast<double>(cost.flops_attention[0]) * busiest_share(p, partition) / g.shape.tp;
  g.flops_estimate = static_cast<double>(cost.flops_estimate[0]) / group;
  // After attention and MLP of each layer, and the embedding: the residual stream of the rank's tokens.
  const double stream = tokens * static_cast<double>(p.config.hidden) * static_cast<double>(size_of(p.dtype));
  g.bytes_all_reduce = all_reduce_bytes(stream, g.shape.tp) * (2 * static_cast<double>(p.config.layers) + 1);
  if (g.shape.sp == 1) return;
  fill_exchange(p, partition, static_cast<double>(share.kv_heads), g);
  if (!machine.decodes_by_heads || !divides_model(p.config, g.shape.tp * g.shape.sp)) return;
  // Of the keys and values that a rank will decode with, all but those of its own tokens come from others.
  const bool evicts = p.attention.decode.method().cache == CacheRule::kEvict;
  const double kept = static_cast<double>(cost.bytes_kv[0]) / group * (evicts ? 1 - p.decode.value : 1);
  g.bytes_reshard = kept * (g.shape.sp - 1) / g.shape.sp;
}

void fill_decode(const PlanProblem& p, const Machine& machine, const SampleCost& cost, GridPlan& g) {
  const ModelConfig& c = p.config;
  const auto kv_heads = static_cast<int>(c.kv_heads);
  const int group = g.shape.tp * g.shape.sp;
  // Rank (t, s) takes slice t·sp + s of the resident shard: tp·sp ways with no second copy, and beyond the
  // number of KV heads keys and values stay split by tokens (DESIGN.md section 2).
  const bool by_heads = machine.decodes_by_heads && g.shape.sp > 1 && divides_model(c, group);
  if (by_heads) {
    g.decode = {group, std::min(group, kv_heads), group > kv_heads ? group / kv_heads : 1};
  } else {
    g.decode = {g.shape.tp, std::min(g.shape.tp, kv_heads), g.shape.sp};
  }
  const double steps = static_cast<double>(p.decode_steps());
  const double batch = p.batch;
  const double kv_share = 1.0 / (static_cast<double>(g.decode.kv_heads) * g.decode.kv_tokens);
  const double head_share_of_rank =
      1.0 / (static_cast<double>(g.decode.weights) * (by_heads ? 1 : g.shape.sp));

  g.step_weights = step_weight_bytes(p, g.decode.weights);
  g.step_kv = batch * kv_share * static_cast<double>(cost.bytes_kv[1]) / steps;
  g.step_estimator = batch * kv_share * static_cast<double>(cost.bytes_estimator[1]) / steps;
  const MatrixElements matrices = matrix_elements(c, g.decode.weights);
  const double attention = static_cast<double>(cost.flops_attention[1] + cost.flops_estimate[1]) / steps;
  g.step_flops = batch * (2 * (matrices.layers + matrices.logits) + head_share_of_rank * attention);

  const double layers = static_cast<double>(c.layers);
  const double stream = batch * static_cast<double>(c.hidden) * static_cast<double>(size_of(p.dtype));
  g.step_exchanged = all_reduce_bytes(stream, g.decode.weights) * (2 * layers + 1);
  if (g.decode.kv_tokens > 1) {
    // Each part of the tokens gives an output and a log-sum-exp in fp32, which all that share the heads get.
    const double heads = static_cast<double>(c.heads) / (by_heads ? g.decode.kv_heads : g.shape.tp);
    g.step_exchanged += layers * (g.decode.kv_tokens - 1) * batch * heads *
                        static_cast<double>(c.head_dim + 1) * sizeof(float);
  }
}

}  // namespace tessera
