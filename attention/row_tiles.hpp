// Tiles of 64 query rows of prefill attention and their online softmax, compiled once for each instruction
// set: include after hwy/foreach_target.h. What dense and sparse prefill share: only the keys that a tile
// meets differ.
#ifndef TESSERA_ATTENTION_ROW_SPAN
#define TESSERA_ATTENTION_ROW_SPAN
#include <cstdint>

namespace tessera {

// Tokens first … first + tokens − 1 of `heads` neighbouring query heads that read the same keys, flattened
// token by token (row = token · heads + head) and cut into tiles of 64 rows.
struct RowSpan {
  int first_head = 0;
  int heads = 0;
  std::int64_t first = 0;
  std::int64_t tokens = 0;
};

}  // namespace tessera
#endif

#if defined(TESSERA_ATTENTION_ROW_TILES_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_ATTENTION_ROW_TILES_HPP
#undef TESSERA_ATTENTION_ROW_TILES_HPP
#else
#define TESSERA_ATTENTION_ROW_TILES_HPP
#endif

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention/cpu_tiles.hpp"
#include "attention/dense.hpp"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {

inline constexpr std::size_t kTileRows = kQueryBlockRows;
inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Columns are computed in whole vectors, and transposed by fours.
inline constexpr std::size_t kColumnStep = std::max<std::size_t>(kLanes, 4);

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
  std::size_t columns = 0;     // rows rounded up to kColumnStep: what is computed
};

// The tiles of a span over `state`: 2 · 64 · D floats a tile.
inline std::vector<RowTile> make_tiles(const RowSpan& span, std::size_t head_dim, float* state) {
  const std::size_t rows = static_cast<std::size_t>(span.tokens * span.heads);
  std::vector<RowTile> tiles((rows + kTileRows - 1) / kTileRows);
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    tiles[i].queries = state + 2 * i * head_dim * kTileRows;
    tiles[i].outputs = tiles[i].queries + head_dim * kTileRows;
    tiles[i].first_row = static_cast<std::int64_t>(i * kTileRows);
    tiles[i].rows = std::min(kTileRows, rows - i * kTileRows);
    tiles[i].columns = (tiles[i].rows + kColumnStep - 1) / kColumnStep * kColumnStep;
  }
  return tiles;
}

// Where row r of a tile lies in q and out, in rows of D, and in lse.
inline std::int64_t place_of(const PrefillAttentionParams& p, const RowSpan& span, std::int64_t row) {
  return (span.first + row / span.heads) * p.heads + span.first_head + row % span.heads;
}

// out[j][i] = factors[j] · in[i][j], i, j < 4.
HWY_INLINE void transpose_four(const float* const (&in)[4], const float* factors, float* const (&out)[4]) {
#if HWY_TARGET == HWY_SCALAR
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) out[j][i] = in[i][j] * factors[j];
  }
#else
  const hn::FixedTag<float, 4> d;
  const hn::FixedTag<double, 2> pairs;
  const auto factor = hn::LoadU(d, factors);
  const auto a = hn::Mul(hn::LoadU(d, in[0]), factor);
  const auto b = hn::Mul(hn::LoadU(d, in[1]), factor);
  const auto c = hn::Mul(hn::LoadU(d, in[2]), factor);
  const auto e = hn::Mul(hn::LoadU(d, in[3]), factor);
  const auto ab = hn::BitCast(pairs, hn::InterleaveLower(d, a, b));
  const auto ce = hn::BitCast(pairs, hn::InterleaveLower(d, c, e));
  const auto ab_high = hn::BitCast(pairs, hn::InterleaveUpper(d, a, b));
  const auto ce_high = hn::BitCast(pairs, hn::InterleaveUpper(d, c, e));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, ab, ce)), d, out[0]);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, ab, ce)), d, out[1]);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, ab_high, ce_high)), d, out[2]);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, ab_high, ce_high)), d, out[3]);
#endif
}

inline void load_tile(const PrefillAttentionParams& p, const RowSpan& span, RowTile& tile) {
  const std::size_t head_dim = static_cast<std::size_t>(p.kv.head_dim);
  const float scale = p.scale * 1.4426950408889634f;
  const float* rows[kTileRows];
  for (std::size_t r = 0; r < kTileRows; ++r) {
    const std::int64_t row = tile.first_row + static_cast<std::int64_t>(std::min(r, tile.rows - 1));
    rows[r] = p.q + place_of(p, span, row) * p.kv.head_dim;
    tile.positions[r] = p.positions[span.first + row / span.heads];
    tile.maxima[r] = kMinusInfinity;
    tile.sums[r] = 0;
  }
  const float scales[4] = {scale, scale, scale, scale};
  for (std::size_t r = 0; r + 4 <= tile.columns; r += 4) {
    float* at = tile.queries + r;
    std::size_t d = 0;
    for (; d + 4 <= head_dim; d += 4, at += 4 * kTileRows) {
      transpose_four({rows[r] + d, rows[r + 1] + d, rows[r + 2] + d, rows[r + 3] + d}, scales,
                     {at, at + kTileRows, at + 2 * kTileRows, at + 3 * kTileRows});
    }
    for (; d < head_dim; ++d, at += kTileRows) {
      for (std::size_t i = 0; i < 4; ++i) at[i] = rows[r + i][d] * scale;
    }
  }
  std::fill_n(tile.outputs, head_dim * kTileRows, 0.0f);
}

// Writes −inf over the scores of keys first … last − 1 that a row does not see; position_of(key) is where the
// key lies.
template <class PositionOf>
HWY_INLINE void mask_scores(const RowTile& tile, std::int32_t window, const PositionOf& position_of,
                            std::size_t first, std::size_t last, float* scores) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  for (std::size_t key = first; key < last; ++key) {
    const std::int32_t place = position_of(key);
    if (window == 0 && place <= tile.positions[0]) continue;  // every row sees it
    const auto at = hn::Set(di, place);
    for (std::size_t column = 0; column < tile.columns; column += kLanes) {
      const auto position = hn::LoadU(di, tile.positions + column);
      auto hidden = hn::Gt(at, position);
      if (window != 0) {
        const auto oldest = hn::Sub(position, hn::Set(di, window));  // the newest key outside the window
        hidden = hn::Or(hidden, hn::Not(hn::Gt(at, oldest)));
      }
      float* score = scores + key * kTileRows + column;
      hn::StoreU(hn::IfThenElse(hn::RebindMask(d, hidden), hn::Set(d, kMinusInfinity), hn::LoadU(d, score)),
                 d, score);
    }
  }
}

// Online softmax (Milakov & Gimelshein 2018): scores become 2^(score − maximum), sums and factors follow.
HWY_INLINE void soften_scores(RowTile& tile, std::size_t first, std::size_t last, float* scores) {
  const Floats d;
  for (std::size_t column = 0; column < tile.columns; column += kLanes) {
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

inline void store_tile(const PrefillAttentionParams& p, const RowSpan& span, const RowTile& tile) {
  const std::size_t head_dim = static_cast<std::size_t>(p.kv.head_dim);
  float* rows[kTileRows];
  float factors[kTileRows];
  for (std::size_t r = 0; r < tile.rows; ++r) {
    const std::int64_t place = place_of(p, span, tile.first_row + static_cast<std::int64_t>(r));
    const float sum = tile.sums[r];
    factors[r] = sum > 0 ? 1.0f / sum : (sum == 0 ? 0.0f : sum);  // NaN goes on
    rows[r] = p.out + place * p.kv.head_dim;
    if (p.lse != nullptr) {
      p.lse[place] = sum == 0 ? kMinusInfinity : (tile.maxima[r] + std::log2(sum)) * 0.6931471805599453f;
    }
  }
  std::size_t r = 0;
  for (; r + 4 <= tile.rows; r += 4) {
    const float* at = tile.outputs + r;
    std::size_t d = 0;
    for (; d + 4 <= head_dim; d += 4, at += 4 * kTileRows) {
      transpose_four({at, at + kTileRows, at + 2 * kTileRows, at + 3 * kTileRows}, factors + r,
                     {rows[r] + d, rows[r + 1] + d, rows[r + 2] + d, rows[r + 3] + d});
    }
    for (; d < head_dim; ++d, at += kTileRows) {
      for (std::size_t i = 0; i < 4; ++i) rows[r + i][d] = at[i] * factors[r + i];
    }
  }
  for (; r < tile.rows; ++r) {
    for (std::size_t d = 0; d < head_dim; ++d) rows[r][d] = tile.outputs[d * kTileRows + r] * factors[r];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#endif
