#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention/dense.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/dense_prefill_cpu.cpp"
#include <hwy/foreach_target.h>

#include "attention/cpu_tiles.hpp"

// Shared by the targets; foreach_target compiles this file several times.
#ifndef TESSERA_ATTENTION_DENSE_PREFILL_TASK
#define TESSERA_ATTENTION_DENSE_PREFILL_TASK
namespace tessera {

// The rows of one task: tokens first … first + tokens − 1 of every query head of one KV head, flattened token
// by token (row = token · G + g) and cut into tiles of 64 rows.
struct PrefillTask {
  int kv_head = 0;
  std::int64_t first = 0;
  std::int64_t tokens = 0;
};

}  // namespace tessera
#endif

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {

inline constexpr std::size_t kTileRows = kQueryBlockRows;
inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// State of one tile of 64 rows; matrices are (D, 64) and (64 keys, 64).
struct RowTile {
  float* queries = nullptr;  // scaled by scale · log2 e: scores are logarithms to base 2
  float* outputs = nullptr;  // not yet divided by sums
  float maxima[kTileRows];
  float sums[kTileRows];
  float factors[kTileRows];  // what a new maximum multiplies earlier outputs by
  std::int32_t positions[kTileRows];
  std::int64_t first_row = 0;  // in the task
  std::size_t rows = 0;        // in use; the rest repeats the last one
};

inline void load_tile(const PrefillAttentionParams& p, const PrefillTask& task, RowTile& tile) {
  const int group = p.heads / p.kv.kv_heads;
  const std::size_t head_dim = static_cast<std::size_t>(p.kv.head_dim);
  const float scale = p.scale * 1.4426950408889634f;
  for (std::size_t r = 0; r < kTileRows; ++r) {
    const std::int64_t row = tile.first_row + static_cast<std::int64_t>(std::min(r, tile.rows - 1));
    const std::int64_t token = task.first + row / group;
    const float* q = p.q + (token * p.heads + task.kv_head * group + row % group) * p.kv.head_dim;
    for (std::size_t d = 0; d < head_dim; ++d) tile.queries[d * kTileRows + r] = q[d] * scale;
    tile.positions[r] = p.positions[token];
    tile.maxima[r] = kMinusInfinity;
    tile.sums[r] = 0;
  }
  std::fill_n(tile.outputs, head_dim * kTileRows, 0.0f);
}

// Writes −inf over the scores of keys that a row does not see. Keys first … last − 1 of the block that starts
// at position `start`.
HWY_INLINE void mask_scores(const RowTile& tile, std::int32_t window, std::int32_t start, std::size_t first,
                            std::size_t last, float* scores) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  for (std::size_t column = 0; column < kTileRows; column += kLanes) {
    const auto position = hn::LoadU(di, tile.positions + column);
    const auto oldest = hn::Sub(position, hn::Set(di, window));  // the newest key outside the window
    for (std::size_t key = first; key < last; ++key) {
      const auto at = hn::Set(di, start + static_cast<std::int32_t>(key));
      auto hidden = hn::Gt(at, position);
      if (window != 0) hidden = hn::Or(hidden, hn::Not(hn::Gt(at, oldest)));
      float* score = scores + key * kTileRows + column;
      hn::StoreU(hn::IfThenElse(hn::RebindMask(d, hidden), hn::Set(d, kMinusInfinity), hn::LoadU(d, score)),
                 d, score);
    }
  }
}

// Online softmax (Milakov & Gimelshein 2018): scores become 2^(score − maximum), sums and factors follow.
HWY_INLINE void soften_scores(RowTile& tile, std::size_t first, std::size_t last, float* scores) {
  const Floats d;
  for (std::size_t column = 0; column < kTileRows; column += kLanes) {
    const FloatVec before = hn::LoadU(d, tile.maxima + column);
    FloatVec maximum = before;
    for (std::size_t key = first; key < last; ++key) {
      maximum = hn::Max(maximum, hn::LoadU(d, scores + key * kTileRows + column));
    }
    // A row that has seen no key yet has maximum −inf; subtracting 0 instead keeps −inf − −inf out.
    const FloatVec infinite = hn::Set(d, kMinusInfinity);
    const FloatVec base = hn::IfThenElse(hn::Eq(maximum, infinite), hn::Zero(d), maximum);
    const FloatVec factor = exp2_of(hn::Sub(before, base));
    FloatVec sum = hn::Mul(hn::LoadU(d, tile.sums + column), factor);
    for (std::size_t key = first; key < last; ++key) {
      float* score = scores + key * kTileRows + column;
      const FloatVec weight = exp2_of(hn::Sub(hn::LoadU(d, score), base));
      sum = hn::Add(sum, weight);
      hn::StoreU(weight, d, score);
    }
    hn::StoreU(maximum, d, tile.maxima + column);
    hn::StoreU(factor, d, tile.factors + column);
    hn::StoreU(sum, d, tile.sums + column);
  }
}

// One tile against one block. keys and values: (64, D) floats; scores: (64, 64) scratch.
HWY_INLINE void attend_block(const PrefillAttentionParams& p, RowTile& tile, std::int64_t block,
                             const float* keys, const float* values, float* scores) {
  const std::size_t head_dim = static_cast<std::size_t>(p.kv.head_dim);
  const std::int64_t start = block * kBlockTokens;
  const std::int64_t newest = tile.positions[kTileRows - 1];
  const std::int64_t low =
      p.window == 0 ? start : std::max<std::int64_t>(start, tile.positions[0] - p.window + 1);
  const std::int64_t high = std::min({start + kBlockTokens, p.kv.length, newest + 1});
  if (low >= high) return;
  // Rows of the slot past `last` may hold anything: they never enter a product over keys.
  const std::size_t first = static_cast<std::size_t>(low - start);
  const std::size_t last = static_cast<std::size_t>(high - start);

  TileProduct product;
  product.a = keys;
  product.row_step = head_dim;
  product.inner_step = 1;
  product.b = tile.queries;
  product.b_stride = kTileRows;
  product.c = scores;
  product.c_stride = kTileRows;
  product.inner = head_dim;
  multiply_tile(product, first, last, kTileRows);

  const bool all_see = high - 1 <= tile.positions[0] && (p.window == 0 || low > newest - p.window);
  if (!all_see) mask_scores(tile, p.window, static_cast<std::int32_t>(start), first, last, scores);
  soften_scores(tile, first, last, scores);

  product.a = values + first * head_dim;
  product.row_step = 1;
  product.inner_step = head_dim;
  product.b = scores + first * kTileRows;
  product.c = tile.outputs;
  product.inner = last - first;
  product.accumulate = true;
  product.factors = tile.factors;
  multiply_tile(product, 0, head_dim, kTileRows);
}

inline void store_tile(const PrefillAttentionParams& p, const PrefillTask& task, const RowTile& tile) {
  const int group = p.heads / p.kv.kv_heads;
  for (std::size_t r = 0; r < tile.rows; ++r) {
    const std::int64_t row = tile.first_row + static_cast<std::int64_t>(r);
    const std::int64_t place = (task.first + row / group) * p.heads + task.kv_head * group + row % group;
    const float sum = tile.sums[r];
    const float factor = sum > 0 ? 1.0f / sum : (sum == 0 ? 0.0f : sum);  // NaN goes on
    float* out = p.out + place * p.kv.head_dim;
    for (int d = 0; d < p.kv.head_dim; ++d) out[d] = tile.outputs[d * kTileRows + r] * factor;
    if (p.lse != nullptr) {
      p.lse[place] = sum == 0 ? kMinusInfinity : (tile.maxima[r] + std::log2(sum)) * 0.6931471805599453f;
    }
  }
}

// workspace: see prefill_workspace.
void prefill_task(const PrefillAttentionParams& p, const PrefillTask& task, float* workspace) {
  const std::size_t head_dim = static_cast<std::size_t>(p.kv.head_dim);
  const std::size_t rows = static_cast<std::size_t>(task.tokens * (p.heads / p.kv.kv_heads));
  float* keys_scratch = workspace;
  float* values_scratch = keys_scratch + kBlockTokens * head_dim;
  float* scores = values_scratch + kBlockTokens * head_dim;
  float* state = scores + kBlockTokens * kTileRows;
  std::vector<RowTile> tiles((rows + kTileRows - 1) / kTileRows);
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    tiles[i].queries = state + 2 * i * head_dim * kTileRows;
    tiles[i].outputs = tiles[i].queries + head_dim * kTileRows;
    tiles[i].first_row = static_cast<std::int64_t>(i * kTileRows);
    tiles[i].rows = std::min(kTileRows, rows - i * kTileRows);
    load_tile(p, task, tiles[i]);
  }

  const std::int64_t oldest = p.window == 0 ? 0 : std::max(0, p.positions[task.first] - p.window + 1);
  const std::int64_t newest = p.positions[task.first + task.tokens - 1];
  const std::int64_t end = std::min(p.kv.blocks, newest / kBlockTokens + 1);
  for (std::int64_t block = oldest / kBlockTokens; block < end; ++block) {
    if (!p.kv.holds(task.kv_head, block)) continue;
    const std::size_t valid = static_cast<std::size_t>(
        std::clamp<std::int64_t>(p.kv.length - block * kBlockTokens, 0, kBlockTokens));
    const float* keys =
        rows_as_floats(p.kv.keys(task.kv_head, block), p.kv.dtype, valid, head_dim, keys_scratch);
    const float* values =
        rows_as_floats(p.kv.values(task.kv_head, block), p.kv.dtype, valid, head_dim, values_scratch);
    for (RowTile& tile : tiles) attend_block(p, tile, block, keys, values, scores);
  }
  for (const RowTile& tile : tiles) store_tile(p, task, tile);
}

}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {

HWY_EXPORT(prefill_task);

// Tiles of a task share the conversion of keys and values; their queries and outputs should stay in a cache
// of 1 MiB, and there should be tasks enough for many threads.
std::int64_t tiles_a_task(int head_dim) {
  return std::clamp(1024 / head_dim, 2, 8);
}

std::size_t prefill_workspace(int head_dim, std::int64_t tiles) {
  const std::size_t block = static_cast<std::size_t>(kBlockTokens) * head_dim;
  return 2 * block + kBlockTokens * kQueryBlockRows +
         2 * static_cast<std::size_t>(tiles) * kQueryBlockRows * head_dim;
}

}  // namespace

void prefill_attention(const PrefillAttentionParams& p) {
  if (p.tokens == 0 || p.heads == 0) return;
  const int group = p.heads / p.kv.kv_heads;
  const std::int64_t tokens_a_task =
      std::max<std::int64_t>(1, tiles_a_task(p.kv.head_dim) * kQueryBlockRows / group);
  const std::int64_t spans = ceil_div(p.tokens, tokens_a_task);
  const std::size_t workspace_floats =
      prefill_workspace(p.kv.head_dim, ceil_div(tokens_a_task * group, kQueryBlockRows));
#pragma omp parallel
  {
    std::vector<float> workspace(workspace_floats);
    // Under the causal mask the last rows see the most keys: longest first, so that threads end together.
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t index = 0; index < spans * p.kv.kv_heads; ++index) {
      PrefillTask task;
      task.kv_head = static_cast<int>(index % p.kv.kv_heads);
      task.first = (spans - 1 - index / p.kv.kv_heads) * tokens_a_task;
      task.tokens = std::min(tokens_a_task, p.tokens - task.first);
      HWY_DYNAMIC_DISPATCH(prefill_task)(p, task, workspace.data());
    }
  }
}

}  // namespace tessera
#endif  // HWY_ONCE
