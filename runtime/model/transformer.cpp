#include "runtime/model/transformer.hpp"

#include <algorithm>
#include <cmath>

#include "runtime/core/error.hpp"
#include "runtime/core/gemm.hpp"
#include "runtime/core/ops.hpp"
#include "runtime/model/gather_logits.hpp"
#include "runtime/model/step_timer.hpp"

namespace tessera {
namespace {

void apply_linear(std::int64_t rows, const float* x, const MatrixView& weight, const std::vector<float>& bias,
                  float* y) {
  LinearParams p;
  p.rows = rows;
  p.x = x;
  p.weight = weight;
  p.bias = bias.empty() ? nullptr : bias.data();
  p.y = y;
  linear(p);
}

void apply_norm(std::int64_t rows, std::int64_t columns, const float* x, const std::vector<float>& weight,
                const ModelConfig& config, float* y) {
  RmsNormParams p;
  p.rows = rows;
  p.columns = columns;
  p.x = x;
  p.weight = weight.data();
  p.weight_offset = config.norm_weight_offset;
  p.eps = static_cast<float>(config.norm_eps);
  p.y = y;
  rms_norm(p);
}

void rotate(const RopeTable& table, std::int64_t tokens, std::int64_t heads, const std::int32_t* positions,
            float* x) {
  RopeParams p;
  p.tokens = tokens;
  p.heads = static_cast<int>(heads);
  p.head_dim = static_cast<int>(2 * table.half);
  p.x = x;
  p.positions = positions;
  p.cosines = table.cosines();
  p.sines = table.sines();
  apply_rope(p);
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, const RopeConfig& rope, const Weights& weights,
                         Grid& grid, KvCache& cache, std::int64_t max_tokens, MemoryMeter& meter,
                         const AttentionPlan& plan)
    : config_(config),
      weights_(weights),
      grid_(grid),
      cache_(cache),
      share_(head_share(config, grid.place.tp, grid.shape.tp)),
      plan_(plan),
      layers_(plan, config),
      rope_(make_rope_table(rope, config.head_dim, max_tokens, meter)),
      times_(static_cast<int>(config.layers)),
      hidden_(meter),
      queries_(meter),
      attended_(meter),
      normed_(meter),
      kv_rows_(meter),
      projected_(meter),
      gate_(meter),
      up_(meter),
      partial_(meter),
      keys_(meter),
      guest_out_(meter),
      row_lse_(meter),
      diagnosed_(meter),
      exchanged_(meter),
      last_hidden_(meter),
      local_logits_(meter) {
  const bool windowed = std::any_of(config.layer_window.begin(), config.layer_window.end(),
                                    [](std::int32_t window) { return window > 0; });
  TESSERA_CHECK(cache.shape().page_bounds || !layers_.needs_page_bounds());
  if (windowed && config.family == ModelFamily::kGemma3) {
    local_rope_ = make_rope_table(config.local_rope, config.head_dim, max_tokens, meter);
  }
}

std::int64_t Transformer::peak_kv_bytes() const {
  return cache_.peak_used_slots() *
         static_cast<std::int64_t>(cache_.shape().slot_bytes() + cache_.shape().bounds_bytes());
}

const RopeTable& Transformer::rope_of(int layer) const {
  return config_.layer_window[layer] > 0 && local_rope_.positions > 0 ? local_rope_ : rope_;
}

void Transformer::all_reduce(Phase phase, int layer, float* data, std::int64_t count) {
  if (grid_.tp->size() == 1) return;
  StepTimer timer(*this, phase, layer, Operation::kCollective);
  grid_.tp->all_reduce_sum(data, static_cast<std::size_t>(count));
}

void Transformer::embed(std::span<const std::int32_t> tokens, Phase phase) {
  const std::int64_t count = static_cast<std::int64_t>(tokens.size());
  float* hidden = hidden_.at_least(static_cast<std::size_t>(count * config_.hidden));
  {
    StepTimer timer(*this, phase, -1, Operation::kEmbed);
    EmbedParams p;
    p.tokens_count = count;
    p.tokens = tokens.data();
    p.table = weights_.embedding;
    p.first_row = weights_.first_vocab_row;
    p.scale = config_.embedding_scale;
    p.out = hidden;
    embed_rows(p);
  }
  all_reduce(phase, -1, hidden, count * config_.hidden);
}

// Norm, projections, head norms and rope of `rows` tokens from row `first` of the residual stream.
void Transformer::project_qkv(Phase phase, int layer, std::int64_t first, std::int64_t rows,
                              const std::int32_t* positions, float* q, float* k, float* v) {
  StepTimer timer(*this, phase, layer, Operation::kQkv);
  const LayerWeights& w = weights_.layers[layer];
  const float* hidden = hidden_.at_least(0) + first * config_.hidden;
  float* normed = normed_.at_least(static_cast<std::size_t>(rows * config_.hidden));
  apply_norm(rows, config_.hidden, hidden, w.input_norm, config_, normed);
  apply_linear(rows, normed, w.q, w.q_bias, q);
  apply_linear(rows, normed, w.k, w.k_bias, k);
  apply_linear(rows, normed, w.v, w.v_bias, v);
  if (config_.qk_norm) {
    apply_norm(rows * share_.heads, config_.head_dim, q, w.q_norm, config_, q);
    apply_norm(rows * share_.kv_heads, config_.head_dim, k, w.k_norm, config_, k);
  }
  rotate(rope_of(layer), rows, share_.heads, positions, q);
  rotate(rope_of(layer), rows, share_.kv_heads, positions, k);
}

// Output projection, MLP and their residuals, for `rows` tokens from row `first`.
void Transformer::finish_layer(Phase phase, int layer, std::int64_t first, std::int64_t rows) {
  const LayerWeights& w = weights_.layers[layer];
  const std::int64_t width = config_.hidden;
  const std::int64_t mlp = config_.mlp / grid_.shape.tp;
  float* hidden = hidden_.at_least(0) + first * width;
  float* projected = projected_.at_least(static_cast<std::size_t>(rows * width));
  {
    StepTimer timer(*this, phase, layer, Operation::kOut);
    const float* attended = attended_.at_least(0) + first * share_.heads * config_.head_dim;
    apply_linear(rows, attended, w.o, {}, projected);
  }
  all_reduce(phase, layer, projected, rows * width);
  {
    StepTimer timer(*this, phase, layer, Operation::kMlp);
    if (config_.post_norms) apply_norm(rows, width, projected, w.post_attention_norm, config_, projected);
    add_in_place(hidden, projected, rows * width, {});
    float* normed = normed_.at_least(static_cast<std::size_t>(rows * width));
    apply_norm(rows, width, hidden, w.pre_mlp_norm, config_, normed);
    GatedActivationParams activation;
    activation.count = rows * mlp;
    activation.gate = activation.y = gate_.at_least(static_cast<std::size_t>(rows * mlp));
    activation.up = up_.at_least(static_cast<std::size_t>(rows * mlp));
    activation.activation = config_.activation;
    apply_linear(rows, normed, w.gate, {}, activation.y);
    apply_linear(rows, normed, w.up, {}, up_.at_least(0));
    gated_activation(activation);
    apply_linear(rows, activation.y, w.down, {}, projected);
  }
  all_reduce(phase, layer, projected, rows * width);
  {
    StepTimer timer(*this, phase, layer, Operation::kMlp);
    if (config_.post_norms) apply_norm(rows, width, projected, w.post_mlp_norm, config_, projected);
    add_in_place(hidden, projected, rows * width, {});
  }
}

// Copies the residual stream at `wanted` to last_hidden_ of every sp rank. Each lies on one of them; the
// others add zero.
void Transformer::pick_rows(std::span<const std::int32_t> positions, std::span<const std::int64_t> wanted) {
  const std::size_t width = static_cast<std::size_t>(config_.hidden);
  float* picked = last_hidden_.at_least(wanted.size() * width);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const auto found = std::lower_bound(positions.begin(), positions.end(), wanted[i]);
    if (found != positions.end() && *found == wanted[i]) {
      std::copy_n(hidden_.at_least(0) + (found - positions.begin()) * config_.hidden, width,
                  picked + i * width);
    } else {
      std::fill_n(picked + i * width, width, 0.0f);
    }
  }
  if (grid_.shape.sp == 1) return;
  StepTimer timer(*this, Phase::kPrefill, -1, Operation::kExchange);
  grid_.sp->all_reduce_sum(picked, wanted.size() * width);
}

// Logits of the rows of last_hidden_: this rank's share of the vocabulary, and all of it when wanted.
void Transformer::compute_logits(Phase phase, std::int64_t rows, std::vector<float>& logits) {
  StepTimer timer(*this, phase, -1, Operation::kLogits);
  const std::int64_t share = weights_.lm_head.rows;
  float* hidden = last_hidden_.at_least(0);
  float* local = local_logits_.at_least(static_cast<std::size_t>(rows * share));
  apply_norm(rows, config_.hidden, hidden, weights_.final_norm, config_, hidden);
  apply_linear(rows, hidden, weights_.lm_head, {}, local);
  logit_rows_ = rows;
  logit_phase_ = phase;
  logits.clear();
  if (!want_logits_) return;
  logits = gather_vocabulary(*grid_.tp, {local, static_cast<std::size_t>(rows * share)}, rows, config_.vocab);
}

void Transformer::greedy_tokens(std::vector<std::int32_t>& tokens) {
  const std::int64_t share = weights_.lm_head.rows;
  std::vector<Maximum> own(static_cast<std::size_t>(logit_rows_), {-INFINITY, INT64_MAX});
  {
    StepTimer timer(*this, logit_phase_, -1, Operation::kLogits);
    for (std::int64_t row = 0; row < logit_rows_ && share > 0; ++row) {
      own[row] = argmax(local_logits_.at_least(0) + row * share, share);
      if (own[row].index >= 0) own[row].index += weights_.first_vocab_row;
    }
  }
  const int ranks = grid_.tp->size();
  std::vector<Maximum> all(own.size() * ranks);
  // Also with one rank: from here on this rank waits, for the tokens of others or for its next command.
  StepTimer timer(*this, logit_phase_, -1, Operation::kCollective);
  grid_.tp->all_gather(own.data(), own.size() * sizeof(Maximum), all.data());
  tokens.resize(own.size());
  for (std::size_t row = 0; row < own.size(); ++row) {
    Maximum best = all[row];
    for (int rank = 0; rank < ranks; ++rank) {
      const Maximum& other = all[rank * own.size() + row];
      if (other.index < 0 || std::isinf(other.value) || std::isnan(other.value)) {
        throw NumericalError(
            "logits hold NaN or Inf (row {} of {}); the weights, the dtype or the rope are wrong for "
            "this prompt",
            row, own.size());
      }
      // Ranks hold ascending parts of the vocabulary: an equal value later has a higher id.
      if (other.value > best.value) best = other;
    }
    tokens[row] = static_cast<std::int32_t>(best.index);
  }
}

}  // namespace tessera
