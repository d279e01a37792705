// One token of each of several sequences: decoding.
#include <algorithm>

#include "attention/dense.hpp"
#include "parallel/merge.hpp"
#include "runtime/model/step_timer.hpp"

namespace tessera {

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

}  // namespace tessera
