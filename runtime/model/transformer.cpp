#include "runtime/model/transformer.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention/dense.hpp"
#include "parallel/merge.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/gemm.hpp"
#include "runtime/core/ops.hpp"

namespace tessera {
namespace {

// Projections and MLP go by chunks of this many tokens, so that their workspace does not grow with the
// prompt.
constexpr std::int64_t kChunkTokens = 1024;

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

// Charges the time of a scope to (phase, layer, operation), after telling the listener.
struct Transformer::StepTimer {
  StepTimer(Transformer& transformer, Phase phase, int layer, Operation operation)
      : total(transformer.times_.at(phase, layer, operation)) {
    if (transformer.listener_) transformer.listener_(phase, layer, operation);
  }
  ~StepTimer() { total += seconds_since(start); }

  double& total;
  HostClock::time_point start = HostClock::now();
};

Transformer::Transformer(const ModelConfig& config, const RopeConfig& rope, const Weights& weights,
                         Grid& grid, KvCache& cache, std::int64_t max_tokens, MemoryMeter& meter)
    : config_(config),
      weights_(weights),
      grid_(grid),
      cache_(cache),
      share_(head_share(config, grid.place.tp, grid.shape.tp)),
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
      last_hidden_(meter),
      local_logits_(meter) {
  const bool windowed = std::any_of(config.layer_window.begin(), config.layer_window.end(),
                                    [](std::int32_t window) { return window > 0; });
  if (windowed && config.family == ModelFamily::kGemma3) {
    local_rope_ = make_rope_table(config.local_rope, config.head_dim, max_tokens, meter);
  }
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

void Transformer::prefill(int sequence, const SequencePartition& partition,
                          std::span<const std::int32_t> tokens, std::span<const std::int64_t> logit_positions,
                          std::vector<float>& logits) {
  const std::vector<std::int32_t> positions = partition.positions_of(grid_.place.sp);
  const std::int64_t local = static_cast<std::int64_t>(positions.size());
  std::vector<std::int32_t> local_tokens(positions.size());
  for (std::size_t i = 0; i < positions.size(); ++i) local_tokens[i] = tokens[positions[i]];

  const std::int64_t q_width = share_.heads * config_.head_dim;
  const std::int64_t kv_width = share_.kv_heads * config_.head_dim;
  exchange_ = {};
  embed(local_tokens, Phase::kPrefill);
  float* queries = queries_.at_least(static_cast<std::size_t>(local * q_width));
  float* attended = attended_.at_least(static_cast<std::size_t>(local * q_width));
  float* k = kv_rows_.at_least(static_cast<std::size_t>(2 * std::min(kChunkTokens, local) * kv_width));
  float* v = k + std::min(kChunkTokens, local) * kv_width;

  for (int layer = 0; layer < config_.layers; ++layer) {
    for (std::int64_t first = 0; first < local; first += kChunkTokens) {
      const std::int64_t rows = std::min(kChunkTokens, local - first);
      project_qkv(Phase::kPrefill, layer, first, rows, positions.data() + first, queries + first * q_width, k,
                  v);
      StepTimer timer(*this, Phase::kPrefill, layer, Operation::kQkv);
      cache_.append({sequence, layer, rows, positions.data() + first, k, v, kv_width});
    }
    gather_guests(sequence, layer, partition);
    {
      StepTimer timer(*this, Phase::kPrefill, layer, Operation::kAttend);
      PrefillAttentionParams p;
      p.tokens = local;
      p.heads = static_cast<int>(share_.heads);
      p.q = queries;
      p.positions = positions.data();
      p.kv = cache_.view(sequence, layer, partition.length());
      p.scale = config_.attention_scale;
      p.window = config_.layer_window[layer];
      p.out = attended;
      prefill_attention(p);
    }
    if (grid_.shape.sp > 1) cache_.drop_guests(sequence, layer);
    if (const std::int64_t window = config_.layer_window[layer]; window > 0) {
      cache_.release_before(sequence, layer, partition.length() - window + 1);
    }
    for (std::int64_t first = 0; first < local; first += kChunkTokens) {
      finish_layer(Phase::kPrefill, layer, first, std::min(kChunkTokens, local - first));
    }
  }

  // The rows whose logits are wanted lie on one sp rank each; the others add zero.
  const std::int64_t wanted = static_cast<std::int64_t>(logit_positions.size());
  float* last = last_hidden_.at_least(static_cast<std::size_t>(wanted * config_.hidden));
  for (std::int64_t i = 0; i < wanted; ++i) {
    const auto found = std::lower_bound(positions.begin(), positions.end(), logit_positions[i]);
    const bool here = found != positions.end() && *found == logit_positions[i];
    float* row = last + i * config_.hidden;
    if (here) {
      std::copy_n(hidden_.at_least(0) + (found - positions.begin()) * config_.hidden, config_.hidden, row);
    } else {
      std::fill_n(row, config_.hidden, 0.0f);
    }
  }
  if (grid_.shape.sp > 1) grid_.sp->all_reduce_sum(last, static_cast<std::size_t>(wanted * config_.hidden));
  compute_logits(Phase::kPrefill, wanted, logits);
}

// Every sp rank gets the blocks of the others that its rows can see, one KV head at a time.
void Transformer::gather_guests(int sequence, int layer, const SequencePartition& partition) {
  if (grid_.shape.sp == 1) return;
  StepTimer timer(*this, Phase::kPrefill, layer, Operation::kExchange);
  const int ranks = grid_.shape.sp;
  const int self = grid_.place.sp;
  const std::size_t slot_bytes = cache_.shape().slot_bytes();

  std::vector<std::vector<std::int64_t>> blocks(ranks);
  std::vector<std::size_t> counts(ranks);
  std::size_t total = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    for (const TokenRange& range : partition.ranges_of(rank)) {
      for (std::int64_t b = range.begin / kBlockTokens; b < ceil_div(range.end, kBlockTokens); ++b) {
        if (range.size() > 0) blocks[rank].push_back(b);
      }
    }
    counts[rank] = blocks[rank].size() * slot_bytes;
    total += counts[rank];
  }
  // Rows of this rank see no block past its last token.
  const auto own = partition.ranges_of(self);
  const std::int64_t needed_end = ceil_div(own[1].size() > 0 ? own[1].end : own[0].end, kBlockTokens);

  std::vector<std::byte> send(counts[self]), receive(total);
  std::uint64_t needed_blocks = 0;
  for (int head = 0; head < share_.kv_heads; ++head) {
    const KvView view = cache_.view(sequence, layer, partition.length());
    for (std::size_t i = 0; i < blocks[self].size(); ++i) {
      std::memcpy(send.data() + i * slot_bytes, view.keys(head, blocks[self][i]), slot_bytes);
    }
    grid_.sp->all_gather_v(send.data(), receive.data(), counts);
    const std::byte* source = receive.data();
    for (int rank = 0; rank < ranks; ++rank) {
      for (std::int64_t block : blocks[rank]) {
        if (rank != self && block < needed_end) {
          std::memcpy(cache_.place_guest(sequence, layer, head, block), source, slot_bytes);
          ++needed_blocks;
        }
        source += slot_bytes;
      }
    }
  }
  const std::uint64_t full = (total - counts[self]) * static_cast<std::uint64_t>(share_.kv_heads);
  exchange_.bytes_selected.push_back(full);  // dense selects everything
  exchange_.bytes_needed.push_back(needed_blocks * slot_bytes);
  exchange_.bytes_full.push_back(full);
  exchange_.units_sent.push_back(blocks[self].size() * (kBlockTokens / kPageTokens) *
                                 static_cast<std::uint64_t>(share_.kv_heads * (ranks - 1)));
}

void Transformer::decode(std::span<const DecodeRow> rows, std::vector<float>& logits) {
  const std::int64_t count = static_cast<std::int64_t>(rows.size());
  std::vector<std::int32_t> tokens(rows.size()), positions(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    tokens[i] = rows[i].token;
    positions[i] = rows[i].position;
  }
  const std::int64_t q_width = share_.heads * config_.head_dim;
  const std::int64_t kv_width = share_.kv_heads * config_.head_dim;
  embed(tokens, Phase::kDecode);
  float* queries = queries_.at_least(static_cast<std::size_t>(count * q_width));
  attended_.at_least(static_cast<std::size_t>(count * q_width));
  float* k = kv_rows_.at_least(static_cast<std::size_t>(2 * count * kv_width));
  float* v = k + count * kv_width;

  for (int layer = 0; layer < config_.layers; ++layer) {
    project_qkv(Phase::kDecode, layer, 0, count, positions.data(), queries, k, v);
    attend_decode(layer, rows, positions.data());
    finish_layer(Phase::kDecode, layer, 0, count);
  }
  float* last = last_hidden_.at_least(static_cast<std::size_t>(count * config_.hidden));
  std::copy_n(hidden_.at_least(0), count * config_.hidden, last);
  compute_logits(Phase::kDecode, count, logits);
}

// Appends the new keys and values where their block lies, attends to what this rank holds, and merges over
// sp.
void Transformer::attend_decode(int layer, std::span<const DecodeRow> rows, const std::int32_t* positions) {
  const std::int64_t count = static_cast<std::int64_t>(rows.size());
  const std::int64_t kv_width = share_.kv_heads * config_.head_dim;
  const std::int64_t heads_width = share_.heads * config_.head_dim;
  const std::int64_t window = config_.layer_window[layer];
  const float* k = kv_rows_.at_least(0);
  const float* v = k + count * kv_width;
  const int ranks = grid_.shape.sp;
  const std::int64_t part = count * (heads_width + share_.heads);  // out (N, H, D), then lse (N, H)
  float* own_out =
      ranks == 1 ? attended_.at_least(0) : partial_.at_least(static_cast<std::size_t>((ranks + 1) * part));
  {
    StepTimer timer(*this, Phase::kDecode, layer, Operation::kAttend);
    std::vector<KvView> views(rows.size());
    for (std::int64_t i = 0; i < count; ++i) {
      const DecodeRow& row = rows[i];
      if (window > 0) cache_.release_before(row.sequence, layer, row.position - window + 1);
      if (row.partition->owner_of_block(row.position / kBlockTokens) == grid_.place.sp) {
        cache_.append({row.sequence, layer, 1, positions + i, k + i * kv_width, v + i * kv_width, kv_width});
      }
      views[i] = cache_.view(row.sequence, layer, row.position + 1);
    }
    DecodeAttentionParams p;
    p.sequences = static_cast<int>(count);
    p.heads = static_cast<int>(share_.heads);
    p.q = queries_.at_least(0);
    p.positions = positions;
    p.kv = views.data();
    p.scale = config_.attention_scale;
    p.window = static_cast<std::int32_t>(window);
    p.out = own_out;
    p.lse = ranks == 1 ? nullptr : own_out + count * heads_width;
    decode_attention(p);
  }
  if (ranks == 1) return;

  float* gathered = own_out + part;
  {
    StepTimer timer(*this, Phase::kDecode, layer, Operation::kExchange);
    grid_.sp->all_gather(own_out, static_cast<std::size_t>(part) * sizeof(float), gathered);
  }
  StepTimer timer(*this, Phase::kDecode, layer, Operation::kAttend);
  std::vector<const float*> outs, lses;
  for (int rank = 0; rank < ranks; ++rank) {
    outs.push_back(gathered + rank * part);
    lses.push_back(outs.back() + count * heads_width);
  }
  MergeParams merge;
  merge.partials = ranks;
  merge.rows = count * share_.heads;
  merge.head_dim = static_cast<int>(config_.head_dim);
  merge.outs = outs.data();
  merge.lses = lses.data();
  merge.out = attended_.at_least(0);
  merge_partials(merge);
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
  logits.clear();
  if (!want_logits_) return;

  const int ranks = grid_.tp->size();
  std::vector<std::size_t> counts(ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    counts[rank] = static_cast<std::size_t>(rows * (vocab_begin(config_.vocab, rank + 1, ranks) -
                                                    vocab_begin(config_.vocab, rank, ranks))) *
                   sizeof(float);
  }
  std::vector<float> gathered(static_cast<std::size_t>(rows * config_.vocab));
  grid_.tp->all_gather_v(local, gathered.data(), counts);
  logits.resize(gathered.size());
  const float* source = gathered.data();
  for (int rank = 0; rank < ranks; ++rank) {
    const std::int64_t begin = vocab_begin(config_.vocab, rank, ranks);
    const std::int64_t width = vocab_begin(config_.vocab, rank + 1, ranks) - begin;
    for (std::int64_t row = 0; row < rows; ++row, source += width) {
      std::copy_n(source, width, logits.data() + row * config_.vocab + begin);
    }
  }
}

void Transformer::greedy_tokens(std::vector<std::int32_t>& tokens) {
  const std::int64_t share = weights_.lm_head.rows;
  std::vector<Maximum> own(static_cast<std::size_t>(logit_rows_), {-INFINITY, INT64_MAX});
  for (std::int64_t row = 0; row < logit_rows_ && share > 0; ++row) {
    own[row] = argmax(local_logits_.at_least(0) + row * share, share);
    if (own[row].index >= 0) own[row].index += weights_.first_vocab_row;
  }
  const int ranks = grid_.tp->size();
  std::vector<Maximum> all(own.size() * ranks);
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
