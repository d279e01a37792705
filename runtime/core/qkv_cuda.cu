// From the projections to attention: see QkvParams. A head's row of D channels belongs to D/16 lanes; each
// holds eight channels of the lower half and the eight of the upper half that rope turns them with.
#include <algorithm>

#include "runtime/core/cuda_element.cuh"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/device_ops.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostHeadsOfLanes = 8;             // query heads that share one load of cosines and sines
constexpr std::int64_t kEnoughThreads = 270000;  // that fill 132 multiprocessors

template <typename T>
struct QkvArguments {
  QkvParams p;
  int query_lists;     // groups of lanes a token has for its query heads
  unsigned kv_blocks;  // CTAs that store K and V; they come first, since a page's rows are taken one by one
};

// Eight channels from `low` on and eight from low + D/2 on.
struct Halves {
  float low[kVectorWidth];
  float high[kVectorWidth];
};

template <typename T, int kD>
struct Lanes {
  static constexpr int kCount = kD / (2 * kVectorWidth);

  // lane: of its group. mask: the group's lanes in the warp.
  int lane;
  unsigned mask;

  __device__ Lanes() {
    lane = threadIdx.x % kCount;
    mask = ((1ull << kCount) - 1) << (threadIdx.x % 32 / kCount * kCount);
  }

  __device__ __forceinline__ void widen_row(const uint4& low, const uint4& high, Halves& row) const {
    widen<T>(low, row.low);
    widen<T>(high, row.high);
  }
  __device__ __forceinline__ uint4 low_bits(const T* row) const {
    return load_bits(row + lane * kVectorWidth);
  }
  __device__ __forceinline__ uint4 high_bits(const T* row) const {
    return load_bits(row + kD / 2 + lane * kVectorWidth);
  }
  __device__ __forceinline__ void store(T* row, const Halves& value) const {
    store_vector(row + lane * kVectorWidth, value.low);
    store_vector(row + kD / 2 + lane * kVectorWidth, value.high);
  }
  __device__ __forceinline__ void load(const T* row, Halves& value) const {
    widen_row(low_bits(row), high_bits(row), value);
  }
  __device__ __forceinline__ void add(Halves& value, const T* bias) const {
    Halves b;
    load(bias, b);
#pragma unroll
    for (int j = 0; j < kVectorWidth; ++j) value.low[j] += b.low[j], value.high[j] += b.high[j];
  }
  // RMS norm of the head, in fp32 up to rope.
  __device__ __forceinline__ void norm(Halves& value, const Halves& weight, float offset, float eps) const {
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kVectorWidth; ++j) {
      squares = fmaf(value.low[j], value.low[j], squares);
      squares = fmaf(value.high[j], value.high[j], squares);
    }
#pragma unroll
    for (int distance = kCount / 2; distance > 0; distance /= 2) {
      squares += __shfl_xor_sync(mask, squares, distance);
    }
    const float factor = 1.0f / sqrtf(squares * (1.0f / kD) + eps);
#pragma unroll
    for (int j = 0; j < kVectorWidth; ++j) {
      value.low[j] *= factor * (weight.low[j] + offset);
      value.high[j] *= factor * (weight.high[j] + offset);
    }
  }
};

struct Angles {
  float cosine[kVectorWidth];
  float sine[kVectorWidth];

  template <int kD>
  __device__ __forceinline__ void load(const QkvParams& p, std::int32_t position, int lane) {
    const std::int64_t at = std::int64_t{position} * (kD / 2) + lane * kVectorWidth;
    load_floats(p.cosines + at, cosine);
    load_floats(p.sines + at, sine);
  }
  __device__ __forceinline__ void turn(Halves& value) const {
#pragma unroll
    for (int j = 0; j < kVectorWidth; ++j) {
      const float low = value.low[j], high = value.high[j];
      value.low[j] = low * cosine[j] - high * sine[j];
      value.high[j] = high * cosine[j] + low * sine[j];
    }
  }
};

template <typename T, int kD>
__device__ __forceinline__ void query_heads(const QkvArguments<T>& a, unsigned group) {
  const QkvParams& p = a.p;
  const Lanes<T, kD> lanes;
  const unsigned token = group / a.query_lists;
  if (token >= p.tokens) return;
  const std::int32_t position = p.positions[token];
  if (position < 0) return;
  Angles angles;
  angles.load<kD>(p, position, lanes.lane);
  Halves weight;
  if (p.q_norm != nullptr) lanes.load(static_cast<const T*>(p.q_norm), weight);
  const T* q = static_cast<const T*>(p.q) + token * p.q_stride;
  T* out = static_cast<T*>(p.q_out) + token * p.q_out_stride;
  for (int head = group % a.query_lists; head < p.heads; head += a.query_lists) {
    Halves value;
    lanes.load(q + head * kD, value);
    if (p.q_bias != nullptr) lanes.add(value, static_cast<const T*>(p.q_bias) + head * kD);
    if (p.q_norm != nullptr) lanes.norm(value, weight, p.norm_offset, p.norm_eps);
    angles.turn(value);
    lanes.store(out + head * kD, value);
  }
}

__device__ __forceinline__ bool same_page(const QkvParams& p, std::int64_t token, std::int32_t position) {
  const std::int32_t other = p.positions[token];
  return other >= 0 && other / kPageTokens == position / kPageTokens;
}

// The tokens that one group of lanes stores, from `token` on: one, or, where bounds are kept, the run of
// neighbouring tokens that fall into one page, so that a page's bounds have one writer. 0: another group's.
__device__ __forceinline__ int run_length(const QkvParams& p, std::int64_t token, std::int32_t position) {
  if (p.bounds == nullptr || p.sequences != nullptr) return 1;
  if (token > 0 && same_page(p, token - 1, position)) return 0;
  int length = 1;
  while (token + length < p.tokens && same_page(p, token + length, position)) ++length;
  return length;
}

template <typename T, int kD>
__device__ __forceinline__ void key_value_head(const QkvArguments<T>& a, unsigned group) {
  const QkvParams& p = a.p;
  const Lanes<T, kD> lanes;
  const unsigned first = group / p.kv_heads;
  const int head = group % p.kv_heads;
  if (first >= p.tokens) return;
  std::int32_t position = p.positions[first];
  if (position < 0) return;
  const int length = run_length(p, first, position);
  if (length == 0) return;

  const std::int64_t sequence = p.sequences == nullptr ? 0 : p.sequences[first];
  std::int64_t row = position;
  if (p.rows_of_head != nullptr) {
    row = p.rows_of_head[sequence * p.kv_heads + head] + (p.sequences == nullptr ? first : 0);
  }
  const std::int32_t slot =
      p.table[sequence * p.table_sequence_stride + head * p.table_stride + row / kBlockTokens];
  if (slot < 0) return;
  T* keys = reinterpret_cast<T*>(p.slots + static_cast<std::size_t>(slot) * p.slot_bytes);
  T* values = keys + kBlockTokens * kD;

  const T* k = static_cast<const T*>(p.k) + first * p.kv_stride + head * kD;
  const T* v = static_cast<const T*>(p.v) + first * p.kv_stride + head * kD;
  Halves weight, lowest, highest;
  if (p.k_norm != nullptr) lanes.load(static_cast<const T*>(p.k_norm), weight);
  T* bounds = nullptr;
  if (p.bounds != nullptr) {
    const std::int64_t page =
        std::int64_t{slot} * (kBlockTokens / kPageTokens) + row % kBlockTokens / kPageTokens;
    bounds = reinterpret_cast<T*>(p.bounds) + page * 2 * kD;
    if (row % kPageTokens != 0) {
      lanes.load(bounds, lowest);
      lanes.load(bounds + kD, highest);
    }
  }
  uint4 k_low = lanes.low_bits(k), k_high = lanes.high_bits(k);
  uint4 v_low = lanes.low_bits(v), v_high = lanes.high_bits(v);
  for (int i = 0; i < length; ++i) {
    Halves key, value;
    lanes.widen_row(k_low, k_high, key);
    lanes.widen_row(v_low, v_high, value);
    const std::int64_t at = (p.rows_of_head != nullptr ? row : position) % kBlockTokens;
    Angles angles;
    angles.load<kD>(p, position, lanes.lane);
    if (i + 1 < length) {  // asked for before this row's arithmetic and stores
      k += p.kv_stride, v += p.kv_stride;
      k_low = lanes.low_bits(k), k_high = lanes.high_bits(k);
      v_low = lanes.low_bits(v), v_high = lanes.high_bits(v);
      position = p.positions[first + i + 1];
    }
    if (p.k_bias != nullptr) lanes.add(key, static_cast<const T*>(p.k_bias) + head * kD);
    if (p.v_bias != nullptr) lanes.add(value, static_cast<const T*>(p.v_bias) + head * kD);
    if (p.k_norm != nullptr) lanes.norm(key, weight, p.norm_offset, p.norm_eps);
    angles.turn(key);
    lanes.store(keys + at * kD, key);
    lanes.store(values + at * kD, value);
    if (bounds == nullptr) continue;
    const bool starts = at % kPageTokens == 0;
#pragma unroll
    for (int j = 0; j < kVectorWidth; ++j) {
      const float low = rounded<T>(key.low[j]), high = rounded<T>(key.high[j]);
      lowest.low[j] = starts || low < lowest.low[j] ? low : lowest.low[j];
      lowest.high[j] = starts || high < lowest.high[j] ? high : lowest.high[j];
      highest.low[j] = starts || low > highest.low[j] ? low : highest.low[j];
      highest.high[j] = starts || high > highest.high[j] ? high : highest.high[j];
    }
  }
  if (bounds != nullptr) {
    lanes.store(bounds, lowest);
    lanes.store(bounds + kD, highest);
  }
}

template <typename T, int kD>
__global__ void __launch_bounds__(kThreads) qkv_kernel(const QkvArguments<T> a) {
  constexpr unsigned kGroups = kThreads / Lanes<T, kD>::kCount;
  const unsigned group = threadIdx.x / Lanes<T, kD>::kCount;
  if (blockIdx.x < a.kv_blocks) {
    key_value_head<T, kD>(a, blockIdx.x * kGroups + group);
  } else {
    query_heads<T, kD>(a, (blockIdx.x - a.kv_blocks) * kGroups + group);
  }
}

template <typename T, int kD>
void run(const QkvParams& p) {
  constexpr std::int64_t kGroups = kThreads / Lanes<T, kD>::kCount;
  QkvArguments<T> a = {};
  a.p = p;
  // One load of the angles serves several query heads, unless that leaves the device short of threads.
  int each = kMostHeadsOfLanes;
  while (each > 1 && p.tokens * ceil_div(p.heads, each) * Lanes<T, kD>::kCount < kEnoughThreads) each /= 2;
  a.query_lists = static_cast<int>(ceil_div(p.heads, each));
  TESSERA_CHECK(p.tokens * std::max(a.query_lists, p.kv_heads) < (std::int64_t{1} << 31));
  a.kv_blocks = static_cast<unsigned>(ceil_div(p.tokens * p.kv_heads, kGroups));
  const auto q_blocks = static_cast<unsigned>(ceil_div(p.tokens * a.query_lists, kGroups));
  launch(qkv_kernel<T, kD>, {.grid = dim3(a.kv_blocks + q_blocks), .block = dim3(kThreads)}, p.stream, a);
}

}  // namespace

void qkv_to_cache(const QkvParams& params) {
  QkvParams p = params;
  if (p.tokens == 0) return;
  if (p.q_stride == 0) p.q_stride = std::int64_t{p.heads} * p.head_dim;
  if (p.kv_stride == 0) p.kv_stride = std::int64_t{p.kv_heads} * p.head_dim;
  if (p.q_out_stride == 0) p.q_out_stride = std::int64_t{p.heads} * p.head_dim;
  TESSERA_CHECK(vector_aligned(p.q, p.q_stride) && vector_aligned(p.k, p.kv_stride) &&
                vector_aligned(p.v, p.kv_stride) && vector_aligned(p.q_out, p.q_out_stride));
  TESSERA_CHECK(vector_aligned(p.q_bias, 0) && vector_aligned(p.k_bias, 0) && vector_aligned(p.v_bias, 0) &&
                vector_aligned(p.q_norm, 0) && vector_aligned(p.k_norm, 0));
  TESSERA_CHECK(vector_aligned(p.slots, 0) && vector_aligned(p.bounds, 0) && vector_aligned(p.cosines, 0) &&
                vector_aligned(p.sines, 0) && p.slot_bytes % 16 == 0);
  TESSERA_CHECK(p.bounds == nullptr || p.rows_of_head == nullptr);
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    switch (p.head_dim) {
      case 64:
        return run<T, 64>(p);
      case 128:
        return run<T, 128>(p);
      case 256:
        return run<T, 256>(p);
      default:
        throw InternalError("qkv_to_cache: head_dim {} is not 64, 128 or 256", p.head_dim);
    }
  });
}

}  // namespace tessera::cuda
