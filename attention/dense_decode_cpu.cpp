#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention/dense.hpp"
#include "runtime/core/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/dense_decode_cpu.cpp"
#include <hwy/foreach_target.h>

#include "attention/cpu_tiles.hpp"

// Shared by the targets; foreach_target compiles this file several times.
#ifndef TESSERA_ATTENTION_DENSE_DECODE_TASK
#define TESSERA_ATTENTION_DENSE_DECODE_TASK
namespace tessera {

// Blocks first … last − 1 of one KV head of one sequence, for all G query heads that read it, so that keys
// and values come from memory once. The partial result of head g: out (D) at out + g · D, lse at lse + g.
struct DecodeTask {
  int sequence = 0;
  int kv_head = 0;
  std::int64_t first = 0;
  std::int64_t last = 0;
  float* out = nullptr;
  float* lse = nullptr;
};

// Channels are padded with zeros to the widest vector of any target.
constexpr std::size_t padded_head_dim(int head_dim) {
  return (static_cast<std::size_t>(head_dim) + 15) / 16 * 16;
}

}  // namespace tessera
#endif

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {

inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct DecodeState {
  int group = 0;             // G
  std::size_t stride = 0;    // padded D
  float* queries = nullptr;  // (G, stride), scaled by scale · log2 e
  float* outputs = nullptr;  // (G, stride)
  float* scores = nullptr;   // (G, 64)
  float* maxima = nullptr;   // (G)
  float* sums = nullptr;     // (G)
};

// A block of keys and values as they lie in the cache: kType, rows of `stride` elements.
struct DecodeBlock {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
  std::size_t first = 0;  // keys first … last − 1 are visible
  std::size_t last = 0;
  const std::byte* next = nullptr;  // slot of the next block, or null
  std::size_t slot_bytes = 0;
};

// scores[head + h, key + i] = q · k for h < kHeads, i < 4.
template <DType kType, int kHeads>
HWY_INLINE void score_four_keys(const DecodeState& s, int head, const std::byte* keys, std::size_t key) {
  const Floats d;
  const std::size_t stride = s.stride;
  const float* q = s.queries + static_cast<std::size_t>(head) * stride;
  FloatVec sums[kHeads][4];
  for (int h = 0; h < kHeads; ++h) {
    for (int i = 0; i < 4; ++i) sums[h][i] = hn::Zero(d);
  }
  for (std::size_t c = 0; c < stride; c += kLanes) {
    FloatVec ks[4];
    for (int i = 0; i < 4; ++i) ks[i] = load_floats<kType>(keys, (key + i) * stride + c);
    for (int h = 0; h < kHeads; ++h) {
      const FloatVec value = hn::LoadU(d, q + h * stride + c);
      for (int i = 0; i < 4; ++i) sums[h][i] = hn::MulAdd(value, ks[i], sums[h][i]);
    }
  }
  for (int h = 0; h < kHeads; ++h) sum_four(sums[h], s.scores + (head + h) * kBlockTokens + key);
}

// Keys first … last − 1, rounded out to fours: what lies past them in the block is not used. Meanwhile the
// slot of the next block is fetched, so that memory does not wait for arithmetic.
template <DType kType>
HWY_INLINE void score_keys(const DecodeState& s, const DecodeBlock& b) {
  const std::size_t share = b.slot_bytes / (kBlockTokens / 4);
  for (std::size_t key = b.first / 4 * 4; key < b.last; key += 4) {
    if (b.next != nullptr) {
      const std::byte* part = b.next + key / 4 * share;
      for (std::size_t i = 0; i < share; i += 64)
        __builtin_prefetch(part + i, 0, 2);  // into L2: L1 holds this block
    }
    int head = 0;
    for (; head + 4 <= s.group; head += 4) score_four_keys<kType, 4>(s, head, b.keys, key);
    switch (s.group - head) {
      case 3:
        score_four_keys<kType, 3>(s, head, b.keys, key);
        break;
      case 2:
        score_four_keys<kType, 2>(s, head, b.keys, key);
        break;
      case 1:
        score_four_keys<kType, 1>(s, head, b.keys, key);
        break;
      default:
        break;
    }
  }
}

// outputs[head + h, c …] += Σ_key weight · value over kVectors vectors of channels.
template <DType kType, int kHeads, int kVectors>
HWY_INLINE void weigh_channels(const DecodeState& s, const DecodeBlock& b, int head, std::size_t channel) {
  const Floats d;
  const std::size_t stride = s.stride;
  float* out = s.outputs + static_cast<std::size_t>(head) * stride + channel;
  const float* weights = s.scores + static_cast<std::size_t>(head) * kBlockTokens;
  FloatVec sums[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h) {
    for (int j = 0; j < kVectors; ++j) sums[h][j] = hn::LoadU(d, out + h * stride + j * kLanes);
  }
  for (std::size_t key = b.first; key < b.last; ++key) {
    FloatVec vs[kVectors];
    for (int j = 0; j < kVectors; ++j)
      vs[j] = load_floats<kType>(b.values, key * stride + channel + j * kLanes);
    for (int h = 0; h < kHeads; ++h) {
      const FloatVec weight = hn::Set(d, weights[h * kBlockTokens + key]);
      for (int j = 0; j < kVectors; ++j) sums[h][j] = hn::MulAdd(weight, vs[j], sums[h][j]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int j = 0; j < kVectors; ++j) hn::StoreU(sums[h][j], d, out + h * stride + j * kLanes);
  }
}

template <DType kType, int kHeads>
HWY_INLINE void weigh_values(const DecodeState& s, const DecodeBlock& b, int head) {
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
HWY_INLINE void decode_block(const DecodeState& s, const DecodeBlock& b) {
  score_keys<kType>(s, b);
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
HWY_INLINE void decode_any_block(const DecodeState& s, DecodeBlock b, DType dtype, std::size_t head_dim,
                                 float* scratch) {
  if (s.stride == head_dim) {
    switch (dtype) {
      case DType::kF32:
        return decode_block<DType::kF32>(s, b);
      case DType::kBF16:
        return decode_block<DType::kBF16>(s, b);
      case DType::kF16:
        return decode_block<DType::kF16>(s, b);
    }
  }
  float* keys = scratch;
  float* values = scratch + kBlockTokens * s.stride;
  for (std::size_t row = 0; row < b.last; ++row) {
    const std::size_t offset = row * head_dim * size_of(dtype);
    convert_to_float(b.keys + offset, dtype, keys + row * s.stride, head_dim);
    convert_to_float(b.values + offset, dtype, values + row * s.stride, head_dim);
    std::fill(keys + row * s.stride + head_dim, keys + (row + 1) * s.stride, 0.0f);
    std::fill(values + row * s.stride + head_dim, values + (row + 1) * s.stride, 0.0f);
  }
  b.keys = reinterpret_cast<const std::byte*>(keys);
  b.values = reinterpret_cast<const std::byte*>(values);
  decode_block<DType::kF32>(s, b);
}

void decode_task(const DecodeAttentionParams& p, const DecodeTask& task, float* workspace) {
  const KvView& kv = p.kv[task.sequence];
  const std::size_t head_dim = static_cast<std::size_t>(kv.head_dim);
  DecodeState s;
  s.group = p.heads / kv.kv_heads;
  s.stride = padded_head_dim(kv.head_dim);
  float* scratch = workspace;
  s.queries = scratch + 2 * kBlockTokens * s.stride;
  s.outputs = s.queries + s.group * s.stride;
  s.scores = s.outputs + s.group * s.stride;
  s.maxima = s.scores + s.group * kBlockTokens;
  s.sums = s.maxima + s.group;

  const float scale = p.scale * 1.4426950408889634f;
  const float* q =
      p.q + (static_cast<std::int64_t>(task.sequence) * p.heads + task.kv_head * s.group) * kv.head_dim;
  std::fill_n(s.queries, 2 * s.group * s.stride, 0.0f);  // and the outputs
  for (int g = 0; g < s.group; ++g) {
    for (std::size_t i = 0; i < head_dim; ++i) s.queries[g * s.stride + i] = q[g * head_dim + i] * scale;
    s.maxima[g] = kMinusInfinity;
    s.sums[g] = 0;
  }

  const std::int64_t position = p.positions[task.sequence];
  const std::int64_t oldest = p.window == 0 ? 0 : std::max<std::int64_t>(0, position - p.window + 1);
  const std::int64_t newest = std::min(position + 1, kv.length);  // one past
  for (std::int64_t block = task.first; block < task.last; ++block) {
    const std::int64_t start = block * kBlockTokens;
    const std::int64_t low = std::max(start, oldest);
    const std::int64_t high = std::min(start + kBlockTokens, newest);
    if (low >= high || !kv.holds(task.kv_head, block)) continue;
    DecodeBlock b;
    b.keys = kv.keys(task.kv_head, block);
    b.values = kv.values(task.kv_head, block);
    b.first = static_cast<std::size_t>(low - start);
    b.last = static_cast<std::size_t>(high - start);
    const bool more = block + 1 < task.last && kv.holds(task.kv_head, block + 1);
    b.next = more ? kv.keys(task.kv_head, block + 1) : nullptr;
    b.slot_bytes = kv.slot_bytes;
    decode_any_block(s, b, kv.dtype, head_dim, scratch);
  }

  for (int g = 0; g < s.group; ++g) {
    const float factor = s.sums[g] == 0 ? 0.0f : 1.0f / s.sums[g];
    for (std::size_t i = 0; i < head_dim; ++i)
      task.out[g * head_dim + i] = s.outputs[g * s.stride + i] * factor;
    task.lse[g] =
        s.sums[g] == 0 ? kMinusInfinity : (s.maxima[g] + std::log2(s.sums[g])) * 0.6931471805599453f;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {

HWY_EXPORT(decode_task);

constexpr std::int64_t kSplitBlocks = 16;  // 1,024 keys a task, whatever the number of threads

std::size_t decode_workspace(int head_dim, int group) {
  const std::size_t stride = padded_head_dim(head_dim);
  return 2 * kBlockTokens * stride + 2 * group * stride +
         static_cast<std::size_t>(group) * (kBlockTokens + 2);
}

struct Span {
  std::int64_t first = 0;  // the first task of this (sequence, KV head)
  std::int64_t tasks = 0;
};

// Joins the partials of one query head by log-sum-exp, in the order of their keys.
void merge_head(const std::vector<DecodeTask>& tasks, const Span& span, int g, int head_dim, float* out,
                float* lse) {
  float maximum = -std::numeric_limits<float>::infinity();
  for (std::int64_t i = 0; i < span.tasks; ++i) {
    const float value = tasks[span.first + i].lse[g];
    if (!(value <= maximum)) maximum = value;  // NaN wins, and shows
  }
  std::fill_n(out, head_dim, 0.0f);
  if (maximum == -std::numeric_limits<float>::infinity()) {
    if (lse != nullptr) *lse = maximum;
    return;
  }
  float sum = 0;
  for (std::int64_t i = 0; i < span.tasks; ++i) sum += std::exp(tasks[span.first + i].lse[g] - maximum);
  for (std::int64_t i = 0; i < span.tasks; ++i) {
    const DecodeTask& task = tasks[span.first + i];
    const float weight = std::exp(task.lse[g] - maximum) / sum;
    for (int d = 0; d < head_dim; ++d)
      out[d] += weight * task.out[static_cast<std::int64_t>(g) * head_dim + d];
  }
  if (lse != nullptr) *lse = maximum + std::log(sum);
}

}  // namespace

void decode_attention(const DecodeAttentionParams& p) {
  if (p.sequences == 0 || p.heads == 0) return;
  const int kv_heads = p.kv[0].kv_heads;
  const int head_dim = p.kv[0].head_dim;
  const int group = p.heads / kv_heads;

  std::vector<DecodeTask> tasks;
  std::vector<Span> spans;  // (N, K)
  for (int sequence = 0; sequence < p.sequences; ++sequence) {
    const std::int64_t position = p.positions[sequence];
    const std::int64_t oldest = p.window == 0 ? 0 : std::max<std::int64_t>(0, position - p.window + 1);
    const std::int64_t end = std::min(p.kv[sequence].blocks, position / kBlockTokens + 1);
    for (int kv_head = 0; kv_head < kv_heads; ++kv_head) {
      Span span{static_cast<std::int64_t>(tasks.size()), 0};
      // Splits begin at multiples of kSplitBlocks, so that they do not move while a sequence grows.
      for (std::int64_t first = oldest / kBlockTokens / kSplitBlocks * kSplitBlocks; first < end;
           first += kSplitBlocks) {
        tasks.push_back({sequence, kv_head, first, std::min(first + kSplitBlocks, end), nullptr, nullptr});
        ++span.tasks;
      }
      spans.push_back(span);
    }
  }
  std::vector<float> partials(tasks.size() * group * (static_cast<std::size_t>(head_dim) + 1));
  float* lses = partials.data() + tasks.size() * group * head_dim;
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    tasks[i].out = partials.data() + i * group * head_dim;
    tasks[i].lse = lses + i * group;
  }

#pragma omp parallel
  {
    std::vector<float> workspace(decode_workspace(head_dim, group));
#pragma omp for schedule(dynamic, 1)
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      HWY_DYNAMIC_DISPATCH(decode_task)(p, tasks[i], workspace.data());
    }
#pragma omp for schedule(static)
    for (std::int64_t row = 0; row < static_cast<std::int64_t>(p.sequences) * p.heads; ++row) {
      const int head = static_cast<int>(row % p.heads);
      const Span& span = spans[(row / p.heads) * kv_heads + head / group];
      merge_head(tasks, span, head % group, head_dim, p.out + row * head_dim,
                 p.lse == nullptr ? nullptr : p.lse + row);
    }
  }
}

}  // namespace tessera
#endif  // HWY_ONCE
