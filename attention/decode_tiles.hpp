// Decode attention of a few query heads over pages of keys, compiled once for each instruction set: include
// after hwy/foreach_target.h. What dense and sparse decode share: only where the pages come from differs.
#if defined(TESSERA_ATTENTION_DECODE_TILES_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_ATTENTION_DECODE_TILES_HPP
#undef TESSERA_ATTENTION_DECODE_TILES_HPP
#else
#define TESSERA_ATTENTION_DECODE_TILES_HPP
#endif

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/cpu_tiles.hpp"
#include "attention/decode_splits.hpp"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {

inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct DecodeState {
  int group = 0;              // G
  std::size_t stride = 0;     // padded D
  std::size_t row_bytes = 0;  // of a key in the cache
  float* queries = nullptr;   // (G, stride), scaled by scale · log2 e
  float* outputs = nullptr;   // (G, stride)
  float* scores = nullptr;    // (G, 64)
  float* maxima = nullptr;    // (G)
  float* sums = nullptr;      // (G)
};

// scores[head + h, key + i] = q · k for h < kHeads, i < 4.
template <DType kType, int kHeads>
HWY_INLINE void score_four_keys(const DecodeState& s, int head, const std::byte* page, std::size_t key) {
  const Floats d;
  const std::size_t stride = s.stride;
  const std::size_t row = key % kPageTokens;
  const float* q = s.queries + static_cast<std::size_t>(head) * stride;
  FloatVec sums[kHeads][4];
  for (int h = 0; h < kHeads; ++h) {
    for (int i = 0; i < 4; ++i) sums[h][i] = hn::Zero(d);
  }
  for (std::size_t c = 0; c < stride; c += kLanes) {
    FloatVec ks[4];
    for (int i = 0; i < 4; ++i) ks[i] = load_floats<kType>(page, (row + i) * stride + c);
    for (int h = 0; h < kHeads; ++h) {
      const FloatVec value = hn::LoadU(d, q + h * stride + c);
      for (int i = 0; i < 4; ++i) sums[h][i] = hn::MulAdd(value, ks[i], sums[h][i]);
    }
  }
  for (int h = 0; h < kHeads; ++h) sum_four(sums[h], s.scores + (head + h) * kBlockTokens + key);
}

// Into L2: L1 holds the keys at work.
HWY_INLINE void prefetch_four(const DecodeKeys& next, std::size_t key, std::size_t row_bytes) {
  if (key >= next.last) return;
  const std::size_t offset = key % kPageTokens * row_bytes;
  for (std::size_t i = 0; i < 4 * row_bytes; i += 64) {
    __builtin_prefetch(next.keys[key / kPageTokens] + offset + i, 0, 2);
    __builtin_prefetch(next.values[key / kPageTokens] + offset + i, 0, 2);
  }
}

// Keys first … last − 1, rounded out to fours: what lies past them in the page is not used. Meanwhile the
// keys that come next are fetched, so that memory does not wait for arithmetic.
template <DType kType>
HWY_INLINE void score_keys(const DecodeState& s, const DecodeKeys& b, const DecodeKeys& next) {
  for (std::size_t key = b.first / 4 * 4; key < b.last; key += 4) {
    const std::byte* page = b.keys[key / kPageTokens];
    prefetch_four(next, key, s.row_bytes);
    int head = 0;
    for (; head + 4 <= s.group; head += 4) score_four_keys<kType, 4>(s, head, page, key);
    switch (s.group - head) {
      case 3:
        score_four_keys<kType, 3>(s, head, page, key);
        break;
      case 2:
        score_four_keys<kType, 2>(s, head, page, key);
        break;
      case 1:
        score_four_keys<kType, 1>(s, head, page, key);
        break;
      default:
        break;
    }
  }
}

// outputs[head + h, c …] += Σ_key weight · value over kVectors vectors of channels.
template <DType kType, int kHeads, int kVectors>
HWY_INLINE void weigh_channels(const DecodeState& s, const DecodeKeys& b, int head, std::size_t channel) {
  const Floats d;
  const std::size_t stride = s.stride;
  float* out = s.outputs + static_cast<std::size_t>(head) * stride + channel;
  const float* weights = s.scores + static_cast<std::size_t>(head) * kBlockTokens;
  FloatVec sums[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h) {
    for (int j = 0; j < kVectors; ++j) sums[h][j] = hn::LoadU(d, out + h * stride + j * kLanes);
  }
  for (std::size_t key = b.first; key < b.last;) {
    const std::byte* page = b.values[key / kPageTokens];
    const std::size_t end = std::min(b.last, (key / kPageTokens + 1) * kPageTokens);
    for (; key < end; ++key) {
      FloatVec vs[kVectors];
      for (int j = 0; j < kVectors; ++j) {
        vs[j] = load_floats<kType>(page, key % kPageTokens * stride + channel + j * kLanes);
      }
      for (int h = 0; h < kHeads; ++h) {
        const FloatVec weight = hn::Set(d, weights[h * kBlockTokens + key]);
        for (int j = 0; j < kVectors; ++j) sums[h][j] = hn::MulAdd(weight, vs[j], sums[h][j]);
      }
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int j = 0; j < kVectors; ++j) hn::StoreU(sums[h][j], d, out + h * stride + j * kLanes);
  }
}

template <DType kType, int kHeads>
HWY_INLINE void weigh_values(const DecodeState& s, const DecodeKeys& b, int head) {
  std::size_t channel = 0;
  for (; channel + kRegisterVectors * kLanes <= s.stride; channel += kRegisterVectors * kLanes) {
    weigh_channels<kType, kHeads, kRegisterVectors>(s, b, head, channel);
  }
  for (; channel < s.stride; channel += kLanes) weigh_channels<kType, kHeads, 1>(s, b, head, channel);
}

// Online softmax of one head over the block; earlier outputs are scaled when the maximum moves.
HWY_INLINE void soften_row(const DecodeState& s, int g, std::size_t first, std::size_t last) {
  const Floats d;
  float* scores = s.scores + g * kBlockTokens;
  // Hidden keys weigh 2^−inf = 0, so that whole vectors can be used.
  std::fill(scores, scores + first, kMinusInfinity);
  std::fill(scores + last, scores + kBlockTokens, kMinusInfinity);
  FloatVec maxima = hn::Set(d, s.maxima[g]);
  for (std::size_t i = 0; i < kBlockTokens; i += kLanes) maxima = hn::Max(maxima, hn::LoadU(d, scores + i));
  const float maximum = max_of(maxima);
  const float base = maximum == kMinusInfinity ? 0.0f : maximum;
  FloatVec sum = hn::Zero(d);
  for (std::size_t i = 0; i < kBlockTokens; i += kLanes) {
    const FloatVec weight = exp2_of(hn::Sub(hn::LoadU(d, scores + i), hn::Set(d, base)));
    sum = hn::Add(sum, weight);
    hn::StoreU(weight, d, scores + i);
  }
  const float factor = maximum == s.maxima[g] ? 1.0f : std::exp2(s.maxima[g] - base);
  s.sums[g] = s.sums[g] * factor + sum_of(sum);
  s.maxima[g] = maximum;
  if (factor == 1.0f) return;
  float* out = s.outputs + g * s.stride;
  for (std::size_t i = 0; i < s.stride; i += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, out + i), hn::Set(d, factor)), d, out + i);
  }
}

template <DType kType>
HWY_INLINE void decode_tile(const DecodeState& s, const DecodeKeys& b, const DecodeKeys& next) {
  score_keys<kType>(s, b, next);
  for (int g = 0; g < s.group; ++g) soften_row(s, g, b.first, b.last);
  int head = 0;
  for (; head + 4 <= s.group; head += 4) weigh_values<kType, 4>(s, b, head);
  switch (s.group - head) {
    case 3:
      return weigh_values<kType, 3>(s, b, head);
    case 2:
      return weigh_values<kType, 2>(s, b, head);
    case 1:
      return weigh_values<kType, 1>(s, b, head);
    default:
      return;
  }
}

// Rows that are not whole vectors are copied out and padded; others are read, and widened, where they lie.
HWY_INLINE void decode_any_tile(const DecodeState& s, const DecodeKeys& b, const DecodeKeys& next,
                                DType dtype, std::size_t head_dim, float* scratch) {
  if (s.stride == head_dim) {
    switch (dtype) {
      case DType::kF32:
        return decode_tile<DType::kF32>(s, b, next);
      case DType::kBF16:
        return decode_tile<DType::kBF16>(s, b, next);
      case DType::kF16:
        return decode_tile<DType::kF16>(s, b, next);
    }
  }
  DecodeKeys padded = b;
  float* keys = scratch;
  float* values = scratch + kBlockTokens * s.stride;
  for (std::size_t row = b.first; row < b.last; ++row) {
    const std::size_t page = row / kPageTokens;
    const std::size_t offset = row % kPageTokens * s.row_bytes;
    convert_to_float(b.keys[page] + offset, dtype, keys + row * s.stride, head_dim);
    convert_to_float(b.values[page] + offset, dtype, values + row * s.stride, head_dim);
    std::fill(keys + row * s.stride + head_dim, keys + (row + 1) * s.stride, 0.0f);
    std::fill(values + row * s.stride + head_dim, values + (row + 1) * s.stride, 0.0f);
  }
  for (std::size_t page = 0; page < kBlockTokens / kPageTokens; ++page) {
    padded.keys[page] = reinterpret_cast<const std::byte*>(keys + page * kPageTokens * s.stride);
    padded.values[page] = reinterpret_cast<const std::byte*>(values + page * kPageTokens * s.stride);
  }
  decode_tile<DType::kF32>(s, padded, next);
}

// The rows of a task against the keys that source.next(DecodeKeys&) gives until it gives none. workspace: see
// decode_workspace; out (heads, D); lse (heads).
template <class Source>
HWY_INLINE void decode_rows(const DecodeAttentionParams& p, const DecodeTask& task, Source source,
                            float* workspace, float* out, float* lse) {
  const KvView& kv = p.kv[task.sequence];
  const std::size_t head_dim = static_cast<std::size_t>(kv.head_dim);
  DecodeState s;
  s.group = task.heads;
  s.stride = padded_head_dim(kv.head_dim);
  s.row_bytes = head_dim * size_of(kv.dtype);
  s.queries = workspace + 2 * kBlockTokens * s.stride;
  s.outputs = s.queries + s.group * s.stride;
  s.scores = s.outputs + s.group * s.stride;
  s.maxima = s.scores + s.group * kBlockTokens;
  s.sums = s.maxima + s.group;

  const float scale = p.scale * 1.4426950408889634f;
  const float* q = p.q + (static_cast<std::int64_t>(task.sequence) * p.heads + task.first_head) * kv.head_dim;
  std::fill_n(s.queries, 2 * s.group * s.stride, 0.0f);  // and the outputs
  for (int g = 0; g < s.group; ++g) {
    for (std::size_t i = 0; i < head_dim; ++i) s.queries[g * s.stride + i] = q[g * head_dim + i] * scale;
    s.maxima[g] = kMinusInfinity;
    s.sums[g] = 0;
  }

  DecodeKeys buffers[2];
  source.next(buffers[0]);
  for (int at = 0; buffers[at].first < buffers[at].last; at ^= 1) {
    DecodeKeys& next = buffers[at ^ 1];
    source.next(next);
    decode_any_tile(s, buffers[at], next, kv.dtype, head_dim, workspace);
  }

  for (int g = 0; g < s.group; ++g) {
    const float factor = s.sums[g] == 0 ? 0.0f : 1.0f / s.sums[g];
    for (std::size_t i = 0; i < head_dim; ++i) out[g * head_dim + i] = s.outputs[g * s.stride + i] * factor;
    lse[g] = s.sums[g] == 0 ? kMinusInfinity : (s.maxima[g] + std::log2(s.sums[g])) * 0.6931471805599453f;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#endif
