// From the projections to attention: see QkvParams. A head's row of D channels belongs to D/16 lanes; each
// holds eight channels of the lower half and the eight of the upper half that rope turns them with.
#include <algorithm>

#include "runtime/core/cuda_element.cuh"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/cuda_overlap.cuh"
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
  __device__ __forceinline__ void store_bits(T* row, const uint4& low, const uint4& high) const {
    *reinterpret_cast<uint4*>(row + lane * kVectorWidth) = low;
    *reinterpret_cast<uint4*>(row + kD / 2 + lane * kVectorWidth) = high;
  }
  __device__ __forceinline__ void store(T* row, const Halves& value) const {
    store_bits(row, narrow<T>(value.low), narrow<T>(value.high));
  }
  __device__ __forceinline__ void load_words(const T* row, std::uint32_t (&words)[kVectorWidth]) const {
    const uint4 low = low_bits(row), high = high_bits(row);
    words[0] = low.x, words[1] = low.y, words[2] = low.z, words[3] = low.w;
    words[4] = high.x, words[5] = high.y, words[6] = high.z, words[7] = high.w;
  }
  __device__ __forceinline__ void store_words(T* row, const std::uint32_t (&words)[kVectorWidth]) const {
    store_bits(row, {words[0], words[1], words[2], words[3]}, {words[4], words[5], words[6], words[7]});
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
  __device__ __forceinline__ void norm(Halves& value, const T* weights, float offset, float eps) const {
    Halves weight;
    load(weights, weight);
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

// Bounds of a lane's sixteen channels, packed as they are stored to spare registers.
struct LaneBounds {
  std::uint32_t lowest[kVectorWidth];
  std::uint32_t highest[kVectorWidth];
};

// A pair with the first and the second element of `now` where so told, else of `before`.
__device__ __forceinline__ std::uint32_t choose(std::uint32_t before, std::uint32_t now, bool first,
                                                bool second) {
  return __byte_perm(before, now, (second ? 0x7600u : 0x3200u) | (first ? 0x54u : 0x10u));
}

// Takes a stored key into the bounds. Keys come one by one in order of position, and an equal one changes
// nothing, so that where an append ends shows in no bit, not even in the sign of a zero.
template <typename T>
__device__ __forceinline__ void widen_bounds(LaneBounds& bounds, const uint4& low, const uint4& high,
                                             bool starts) {
  const std::uint32_t keys[kVectorWidth] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int j = 0; j < kVectorWidth; ++j) {
    const float2 key = widen_pair<T>(keys[j]);
    const float2 lowest = widen_pair<T>(bounds.lowest[j]), highest = widen_pair<T>(bounds.highest[j]);
    bounds.lowest[j] =
        choose(bounds.lowest[j], keys[j], starts || key.x < lowest.x, starts || key.y < lowest.y);
    bounds.highest[j] =
        choose(bounds.highest[j], keys[j], starts || key.x > highest.x, starts || key.y > highest.y);
  }
}

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
  const T* q = static_cast<const T*>(p.q) + token * p.q_stride;
  T* out = static_cast<T*>(p.q_out) + token * p.q_out_stride;
  int head = static_cast<int>(group % a.query_lists);
  uint4 low = lanes.low_bits(q + head * kD), high = lanes.high_bits(q + head * kD);
#pragma unroll 1
  for (; head < p.heads; head += a.query_lists) {
    Halves value;
    lanes.widen_row(low, high, value);
    const int next = head + a.query_lists;
    if (next < p.heads) low = lanes.low_bits(q + next * kD), high = lanes.high_bits(q + next * kD);
    if (p.q_bias != nullptr) lanes.add(value, static_cast<const T*>(p.q_bias) + head * kD);
    if (p.q_norm != nullptr) lanes.norm(value, static_cast<const T*>(p.q_norm), p.norm_offset, p.norm_eps);
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
  LaneBounds page_bounds = {};
  T* bounds = nullptr;
  if (p.bounds != nullptr) {
    const std::int64_t page =
        std::int64_t{slot} * (kBlockTokens / kPageTokens) + row % kBlockTokens / kPageTokens;
    bounds = reinterpret_cast<T*>(p.bounds) + page * 2 * kD;
    if (row % kPageTokens != 0) {
      lanes.load_words(bounds, page_bounds.lowest);
      lanes.load_words(bounds + kD, page_bounds.highest);
    }
  }
  const auto* k_bias = p.k_bias == nullptr ? nullptr : static_cast<const T*>(p.k_bias) + head * kD;
  const auto* v_bias = p.v_bias == nullptr ? nullptr : static_cast<const T*>(p.v_bias) + head * kD;
  uint4 k_low = lanes.low_bits(k), k_high = lanes.high_bits(k);
  uint4 v_low = lanes.low_bits(v), v_high = lanes.high_bits(v);
#pragma unroll 1
  for (int i = 0; i < length; ++i) {
    const std::int64_t at = (p.rows_of_head != nullptr ? row : position) % kBlockTokens;
    Angles angles;
    angles.load<kD>(p, position, lanes.lane);
    Halves value;
    lanes.widen_row(v_low, v_high, value);
    if (v_bias != nullptr) lanes.add(value, v_bias);
    lanes.store(values + at * kD, value);
    Halves key;
    lanes.widen_row(k_low, k_high, key);
    if (i + 1 < length) {  // asked for before this row's arithmetic
      k += p.kv_stride, v += p.kv_stride;
      k_low = lanes.low_bits(k), k_high = lanes.high_bits(k);
      v_low = lanes.low_bits(v), v_high = lanes.high_bits(v);
      position = p.positions[first + i + 1];
    }
    if (k_bias != nullptr) lanes.add(key, k_bias);
    if (p.k_norm != nullptr) lanes.norm(key, static_cast<const T*>(p.k_norm), p.norm_offset, p.norm_eps);
    angles.turn(key);
    const uint4 low = narrow<T>(key.low), high = narrow<T>(key.high);
    lanes.store_bits(keys + at * kD, low, high);
    if (bounds != nullptr) widen_bounds<T>(page_bounds, low, high, at % kPageTokens == 0);
  }
  if (bounds != nullptr) {
    lanes.store_words(bounds, page_bounds.lowest);
    lanes.store_words(bounds + kD, page_bounds.highest);
  }
}

template <typename T, int kD, int kCtas>
__global__ void __launch_bounds__(kThreads, kCtas) qkv_kernel(const QkvArguments<T> a) {
  start_in_order();
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
  const LaunchShape shape = {
      .grid = dim3(a.kv_blocks + q_blocks), .block = dim3(kThreads), .overlaps_previous = true};
  // Three CTAs a multiprocessor spill a few registers, which costs a short kernel more than it gives.
  if (each == kMostHeadsOfLanes) {
    launch(qkv_kernel<T, kD, 3>, shape, p.stream, a);
  } else {
    launch(qkv_kernel<T, kD, 2>, shape, p.stream, a);
  }
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
