// The two passes of attention/window_sums_cuda.hpp. A CTA takes 128 rows of the window of one head, which
// stay in shared memory, and streams a range of keys past them, 128 at a time (TMA through the block table).
// The first pass has rows of the window in the rows of the product, so that a thread reduces over keys in
// registers; the second has keys there, so that it reduces over the window.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "attention/fixed_point.hpp"
#include "attention/prefill_softmax.cuh"
#include "attention/ptx/mbarrier.cuh"
#include "attention/ptx/shared_address.cuh"
#include "attention/ptx/tma.cuh"
#include "attention/ptx/warpgroup.cuh"
#include "attention/ptx/wgmma.cuh"
#include "attention/tensor_map.hpp"
#include "attention/window_sums_cuda.hpp"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {

inline constexpr int kWindowRows = 128;  // rows of the window that a CTA takes
inline constexpr int kWindowKeys = 128;  // keys of a tile, and of a chunk of row sums
inline constexpr int kWindowStages = 2;  // tiles in flight
inline constexpr int kWindowThreads = 256;
inline constexpr int kHalf = 64;  // rows of a warpgroup, of a box of the copy and of a block
inline constexpr int kSwizzleChannels = 64;

// Sum of the exponentials of a row over one chunk of keys, relative to 2^top; an empty chunk: −inf, 0.
struct ChunkSum {
  float top;
  float sum;
};

struct WindowArguments {
  const std::int32_t* table;  // (K, table_stride)
  std::int64_t table_stride;
  int tokens;          // S
  int first_position;  // S − w
  int rows;            // w
  int row_tiles;       // ceil(w / 128)
  int heads;           // H
  int group;           // G
  int heads_a_list;
  int chunks;        // ceil(S / 128)
  int range_chunks;  // of a CTA
  float scale_log2;
  ChunkSum* sums;     // (H · row_tiles, chunks, 128)
  float* logarithms;  // (H · row_tiles, 128): L_i; +inf in rows past the window
  Fixed* columns;     // (lists, S)
  Fixed* diagonals;   // (lists, S)
  bool largest;       // of each key, instead of the sum
};

struct WindowMaps {
  CUtensorMap q;     // (w, H, D), boxes of 64 rows
  CUtensorMap pool;  // (2 · slots, 64, D)
};

// Sums of the diagonals that the CTA is working on, in two parts of Fixed, since shared memory adds words of
// 32 bits: `low` its last 20 bits, up to 4096 of them; `high` the rest. Places ascend while offsets fall. A
// tile adds to two regions of 128 places, of which the first is then complete; a warp that is ahead may be
// three tiles further.
struct DiagonalRing {
  static constexpr int kRegion = kWindowKeys;
  static constexpr int kPlaces = 8 * kRegion;
  static constexpr int kLowBits = 20;
  std::uint32_t low[kPlaces];
  std::uint32_t high[kPlaces];

  __device__ __forceinline__ void add(unsigned place, float value) {
    const auto fixed = static_cast<std::uint64_t>(__float2ll_rn(value * 0x1p40F));  // the product is exact
    if (fixed == 0) return;
    atomicAdd(low + place % kPlaces, static_cast<std::uint32_t>(fixed) & ((1U << kLowBits) - 1));
    atomicAdd(high + place % kPlaces, static_cast<std::uint32_t>(fixed >> kLowBits));
  }
  // And leaves 0.
  __device__ __forceinline__ std::uint64_t take(unsigned place) {
    std::uint32_t& of_low = low[place % kPlaces];
    std::uint32_t& of_high = high[place % kPlaces];
    const std::uint64_t sum = (static_cast<std::uint64_t>(of_high) << kLowBits) + of_low;
    of_low = of_high = 0;
    return sum;
  }
};

template <typename T, int kHeadDim>
struct WindowShared {
  static constexpr int kGroups = kHeadDim / kSwizzleChannels;
  alignas(1024) T q[kWindowRows * kHeadDim];                 // (D / 64, 128, 64)
  alignas(1024) T k[kWindowStages][kWindowKeys * kHeadDim];  // (D / 64, 128, 64)
  float logarithms[kWindowRows];
  DiagonalRing diagonals;
  std::uint64_t q_full;
  std::uint64_t k_full[kWindowStages];
  std::uint64_t k_empty[kWindowStages];
};

__device__ __forceinline__ void add_fixed(Fixed* target, float value) {
  const long long fixed = __float2ll_rn(value * 0x1p40F);  // the product is exact
  if (fixed != 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(target), static_cast<unsigned long long>(fixed));
}

// Rows of the window in the rows of the product: what each adds up to over these 128 keys.
__device__ __forceinline__ void sum_rows(float (&scores)[kWindowKeys / 2], float scale_log2, ChunkSum* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>(threadIdx.x) / 32 * 16 + lane / 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float largest = fmaxf(scores[2 * r], scores[2 * r + 1]);
#pragma unroll
    for (int i = 4; i < kWindowKeys / 2; i += 4) {
      largest = fmaxf(largest, fmaxf(scores[i + 2 * r], scores[i + 2 * r + 1]));
    }
    const float top = quad_max(largest) * scale_log2;
    const float offset = top == negative_infinity() ? 0.0F : top;
    float sums[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < kWindowKeys / 2; i += 4) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        sums[e] += ptx::exp2_approx(fmaf(scores[i + 2 * r + e], scale_log2, -offset));
      }
    }
    const float sum = quad_sum(sums[0] + sums[1]);
    if (lane % 4 == 0) out[row + 8 * r] = {top, sum};
  }
}

// Keys in the rows of the product, the window in its columns: a lane 4g + q holds keys g, g + 8 of its warp's
// 16, and rows 8j + 2q + e of the window, at 4j + 2a + e (a: which of the keys). Scores become probabilities.
__device__ __forceinline__ void to_probabilities(float (&scores)[kWindowRows / 2], const float* logarithms,
                                                 float scale_log2) {
  const int column = 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
  for (int j = 0; j < kWindowRows / 8; ++j) {
    const float2 base = *reinterpret_cast<const float2*>(logarithms + 8 * j + column);
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      scores[4 * j + 2 * a] = ptx::exp2_approx(fmaf(scores[4 * j + 2 * a], scale_log2, -base.x));
      scores[4 * j + 2 * a + 1] = ptx::exp2_approx(fmaf(scores[4 * j + 2 * a + 1], scale_log2, -base.y));
    }
  }
}

// Zeros where the key is newer than the row, or does not exist. key, row: positions of the warp's first key
// and of the first row of the window.
__device__ __forceinline__ void hide_keys(float (&probabilities)[kWindowRows / 2], int key, int row,
                                          int tokens) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int mine = key + lane / 4;
  const int column = row + 2 * (lane % 4);
  const int ahead[2] = {mine < tokens ? mine - column : kWindowRows,
                        mine + 8 < tokens ? mine + 8 - column : kWindowRows};
#pragma unroll
  for (int j = 0; j < kWindowRows / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (8 * j + i % 2 < ahead[i / 2]) probabilities[4 * j + i] = 0;
    }
  }
}

__device__ __forceinline__ void add_to_columns(const float (&probabilities)[kWindowRows / 2], int key,
                                               int tokens, Fixed* columns) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float sums[2][2] = {};
#pragma unroll
  for (int j = 0; j < kWindowRows / 8; ++j) {
#pragma unroll
    for (int a = 0; a < 2; ++a)
      sums[a][j % 2] += probabilities[4 * j + 2 * a] + probabilities[4 * j + 2 * a + 1];
  }
  const float first = quad_sum(sums[0][0] + sums[0][1]);
  const float second = quad_sum(sums[1][0] + sums[1][1]);
  if (lane % 4 >= 2) return;
  const int mine = key + lane / 4 + lane % 4 * 8;
  if (mine < tokens) add_fixed(columns + mine, lane % 4 == 0 ? first : second);
}

// As the model's dtype has them.
template <typename T>
__device__ __forceinline__ void round_all(float (&probabilities)[kWindowRows / 2]) {
#pragma unroll
  for (float& p : probabilities) p = static_cast<float>(static_cast<T>(p));
}

__device__ __forceinline__ void largest_of_columns(const float (&probabilities)[kWindowRows / 2], int key,
                                                   int tokens, Fixed* columns) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float largest[2] = {};
#pragma unroll
  for (int j = 0; j < kWindowRows / 8; ++j) {
#pragma unroll
    for (int a = 0; a < 2; ++a)
      largest[a] = fmaxf(largest[a], fmaxf(probabilities[4 * j + 2 * a], probabilities[4 * j + 2 * a + 1]));
  }
  const float first = quad_max(largest[0]);
  const float second = quad_max(largest[1]);
  if (lane % 4 >= 2) return;
  const int mine = key + lane / 4 + lane % 4 * 8;
  const long long fixed = __float2ll_rn((lane % 4 == 0 ? first : second) * 0x1p40F);
  if (mine < tokens && fixed != 0)
    atomicMax(reinterpret_cast<unsigned long long*>(columns + mine), static_cast<unsigned long long>(fixed));
}

// Row 8j + 2q + e less key g + 8a is 8i + u − 8, with i = j − a + 1 in 0 … 16 and u = 2q + e − g in −7 … 7;
// with u = rest − 8 · (u < 0) it is 8k + rest − 16, k = i + 1 − (u < 0) in 0 … 17. Of each k and rest, 4
// lanes by 2 values of e hold a part: three exchanges, each of which halves what a lane has left, leave k =
// 4m + q at its lane. lead: position of the first row less that of the warp's first key.
template <class Add>
__device__ __forceinline__ void add_to_diagonals(const float (&p)[kWindowRows / 2], int lead,
                                                 const Add& add) {
  constexpr int kSteps = kWindowRows / 8;  // 16
  constexpr int kPlaces = kSteps + 2;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4;
  const int q = lane % 4;
  const auto of_thread = [&](int i, int e) {  // i known when compiled
    if (i < 0 || i > kSteps) return 0.0F;
    const float older = i >= 1 ? p[4 * (i >= 1 ? i - 1 : 0) + e] : 0.0F;
    const float newer = i < kSteps ? p[4 * (i < kSteps ? i : 0) + 2 + e] : 0.0F;
    return i == 0 ? newer : i == kSteps ? older : older + newer;
  };
  const bool wraps[2] = {2 * q < g, 2 * q + 1 < g};
  float halves[kPlaces];  // of e: the one that has k's parity
#pragma unroll
  for (int k = 0; k < kPlaces; ++k) {
    const float zero = wraps[0] ? of_thread(k, 0) : of_thread(k - 1, 0);
    const float one = wraps[1] ? of_thread(k, 1) : of_thread(k - 1, 1);
    halves[k] = k % 2 == 0 ? zero + __shfl_sync(0xFFFFFFFF, one, (lane + 4) % 32)
                           : one + __shfl_sync(0xFFFFFFFF, zero, (lane + 28) % 32);
  }
  // Of q: lanes that differ in its low bit, then in its high one.
  const bool odd = q % 2 != 0;
  const int beside = (g + (odd ? 6 : 2)) % 8 * 4 + (q ^ 1);
  float quarters[kPlaces / 2];
#pragma unroll
  for (int m = 0; m < kPlaces / 2; ++m) {
    const float kept = odd ? halves[2 * m + 1] : halves[2 * m];
    const float sent = odd ? halves[2 * m] : halves[2 * m + 1];
    quarters[m] = kept + __shfl_sync(0xFFFFFFFF, sent, beside);
  }
  const bool high = q >= 2;
  const int rest = (2 * q + (q & 1) - g) & 7;
  int offset = lead - 16 + 8 * q + rest;
#pragma unroll
  for (int m = 0; m < kPlaces / 4 + 1; ++m) {
    constexpr int kLast = kPlaces / 2 - 1;
    const float low_part = quarters[2 * m];
    const float high_part = 2 * m < kLast ? quarters[2 * m < kLast ? 2 * m + 1 : kLast] : low_part;
    const float kept = high ? high_part : low_part;
    const float sent = high ? low_part : high_part;
    const float sum = kept + __shfl_xor_sync(0xFFFFFFFF, sent, 18);
    const bool counts = 2 * m < kLast || !high;
    if (counts) add(offset, sum);
    offset += 32;
  }
}

// Scores (64, 128) of one warpgroup, in shared memory both: rows `first` … of a, all rows of b.
template <typename T, int kHeadDim>
__device__ __forceinline__ void multiply_shared(float (&scores)[64], std::uint32_t a, int first,
                                                std::uint32_t b) {
  const std::uint64_t a_operand = ptx::swizzled_descriptor(a + static_cast<std::uint32_t>(first) * 128, 0);
  const std::uint64_t b_operand = ptx::swizzled_descriptor(b, 0);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; ++step) {
    const std::uint32_t at = (step / 4 * 128 * 128 + step % 4 * 32) >> 4;
    ptx::wgmma_ss<T, 128>(scores, a_operand + at, b_operand + at, step != 0);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::fence_registers(scores);
}

// Grid (H · row_tiles, ranges of chunks). kSums: the second pass; kTokens: of rounded probabilities, by key
// alone.
template <typename T, int kHeadDim, bool kSums, bool kRing = true, bool kTokens = false>
__global__ void __launch_bounds__(kWindowThreads, kHeadDim == 256 ? 1 : 2)
    window_kernel(const WindowArguments p, const __grid_constant__ WindowMaps maps) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& s = *reinterpret_cast<WindowShared<T, kHeadDim>*>(memory);
  constexpr int kGroups = kHeadDim / kSwizzleChannels;
  constexpr std::uint32_t kTileBytes = kWindowKeys * kHeadDim * sizeof(T);
  const int thread = static_cast<int>(threadIdx.x);
  const int pair = static_cast<int>(blockIdx.x);
  const int head = pair / p.row_tiles;
  const int first_row = pair % p.row_tiles * kWindowRows;
  const int first_position = p.first_position + first_row;
  const int last_position = min(first_position + kWindowRows, p.tokens) - 1;
  const int begin = static_cast<int>(blockIdx.y) * p.range_chunks;
  const int end = min(begin + p.range_chunks, last_position / kWindowKeys + 1);
  if (begin >= end) return;
  const std::int32_t* table = p.table + static_cast<std::int64_t>(head / p.group) * p.table_stride;
  const int blocks = (p.tokens + kHalf - 1) / kHalf;

  if (thread == 0) {
    ptx::barrier_init(&s.q_full, 1);
    for (int stage = 0; stage < kWindowStages; ++stage) {
      ptx::barrier_init(&s.k_full[stage], 1);
      ptx::barrier_init(&s.k_empty[stage], kWindowThreads / 32);
    }
    ptx::fence_barrier_init();
  }
  if constexpr (kSums) {
    if (thread < kWindowRows) s.logarithms[thread] = p.logarithms[pair * kWindowRows + thread];
    for (int i = thread; i < DiagonalRing::kPlaces; i += kWindowThreads) {
      s.diagonals.low[i] = s.diagonals.high[i] = 0;
    }
  }
  __syncthreads();
  const auto slot_of = [&](int block) { return block < blocks ? __ldg(table + block) : -1; };
  // Blocks that are not there are fetched from row 64 on: as zeros. By one thread.
  const auto load = [&](int stage, int slot0, int slot1) {
    ptx::barrier_arrive_expect(&s.k_full[stage], kTileBytes);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int slot = half == 0 ? slot0 : slot1;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        ptx::load_box_3d(s.k[stage] + (g * kWindowKeys + half * kHalf) * kSwizzleChannels, &maps.pool,
                         &s.k_full[stage], g * kSwizzleChannels, slot >= 0 ? 0 : kHalf, 2 * max(slot, 0),
                         ptx::kEvictLast);
      }
    }
  };
  int next_slots[2] = {-1, -1};
  if (thread == 0) {
    ptx::barrier_arrive_expect(&s.q_full, kTileBytes);
#pragma unroll
    for (int part = 0; part < 2 * kGroups; ++part) {
      const int g = part / 2;
      const int half = part % 2;
      ptx::load_box_3d(s.q + (g * kWindowRows + half * kHalf) * kSwizzleChannels, &maps.q, &s.q_full,
                       g * kSwizzleChannels, head, first_row + half * kHalf, ptx::kEvictLast);
    }
    for (int i = 0; i < kWindowStages; ++i) {
      if (begin + i < end) load(i, slot_of(2 * (begin + i)), slot_of(2 * (begin + i) + 1));
    }
    next_slots[0] = slot_of(2 * (begin + kWindowStages));
    next_slots[1] = slot_of(2 * (begin + kWindowStages) + 1);
  }
  __syncwarp();

  const std::uint32_t q_address = ptx::shared_address(s.q);
  const int half = thread / 128;  // which warpgroup
  const std::int64_t list = head / p.heads_a_list;
  Fixed* const columns = kSums ? p.columns + list * p.tokens : nullptr;
  Fixed* const diagonals = kSums && !kTokens ? p.diagonals + list * p.tokens : nullptr;
  ChunkSum* const sums = kSums ? nullptr : p.sums + static_cast<std::int64_t>(pair) * p.chunks * kWindowRows;
  // Offset of place 0 of the ring, and how many regions have been taken from it.
  const int first_offset = first_position - begin * kWindowKeys + kWindowRows - 1;
  int taken = 0;
  const auto take_diagonal = [&](int place) {
    const std::uint64_t sum = s.diagonals.take(static_cast<unsigned>(place));
    const int offset = first_offset - place;
    if (sum == 0 || offset < 0 || offset >= p.tokens) return;
    atomicAdd(reinterpret_cast<unsigned long long*>(diagonals + offset), sum);
  };
  ptx::barrier_wait(&s.q_full, 0);
  for (int chunk = begin; chunk < end; ++chunk) {
    const int turn = chunk - begin;
    const int stage = turn % kWindowStages;
    const std::uint32_t parity = turn / kWindowStages % 2;
    ptx::barrier_wait(&s.k_full[stage], parity);
    float scores[64];
    const std::uint32_t k_address = ptx::shared_address(s.k[stage]);
    if constexpr (kSums) {
      multiply_shared<T, kHeadDim>(scores, k_address, half * kHalf, q_address);
    } else {
      multiply_shared<T, kHeadDim>(scores, q_address, half * kHalf, k_address);
    }
    __syncwarp();
    if (thread % 32 == 0) ptx::barrier_arrive(&s.k_empty[stage]);
    if (thread == 0 && chunk + kWindowStages < end) {
      ptx::barrier_wait(&s.k_empty[stage], parity);
      load(stage, next_slots[0], next_slots[1]);
      next_slots[0] = slot_of(2 * (chunk + kWindowStages + 1));
      next_slots[1] = slot_of(2 * (chunk + kWindowStages + 1) + 1);
    }
    __syncwarp();
    if constexpr (kSums && kRing) {
      // All warps are past this product, and so past their sums of the tile before.
      if (chunk + kWindowStages < end && turn > 0) {
        if (thread < 32) {
          for (int i = thread; i < DiagonalRing::kRegion; i += 32)
            take_diagonal(taken * DiagonalRing::kRegion + i);
        }
        ++taken;
      }
    }

    const int first_key = chunk * kWindowKeys;
    const bool newer = first_key + kWindowKeys - 1 > first_position;
    if constexpr (kSums) {
      to_probabilities(scores, s.logarithms, p.scale_log2);
      const int key = first_key + thread / 32 * 16;  // of the warp
      if (newer) hide_keys(scores, key, first_position, p.tokens);
      if constexpr (kTokens) {
        static_assert(!kRing);
        round_all<T>(scores);
        if (p.largest) {
          largest_of_columns(scores, key, p.tokens, columns);
        } else {
          add_to_columns(scores, key, p.tokens, columns);
        }
      } else {
        add_to_columns(scores, key, p.tokens, columns);
        add_to_diagonals(scores, first_position - key, [&](int offset, float sum) {
          if constexpr (kRing) {
            s.diagonals.add(static_cast<unsigned>(first_offset - offset), sum);
          } else if (offset >= 0 && offset < p.tokens) {
            add_fixed(diagonals + offset, sum);
          }
        });
      }
    } else {
      if (newer) {
        const int row = first_position + thread / 32 * 16 + thread % 32 / 4;
        mask_part<kWindowKeys>(scores, first_key, {0, 0}, {row, row + 8});
      }
      sum_rows(scores, p.scale_log2, sums + static_cast<std::int64_t>(chunk) * kWindowRows);
    }
  }
  if constexpr (kSums && kRing) {
    __syncthreads();
    const int places = (end - begin + 1) * DiagonalRing::kRegion;
    for (int i = taken * DiagonalRing::kRegion + thread; i < places; i += kWindowThreads) take_diagonal(i);
  }
}

inline std::int64_t row_tiles_of(const WindowSumsProblem& problem) {
  return ceil_div(problem.rows(), kWindowRows);
}
inline std::int64_t chunk_sums_of(const WindowSumsProblem& problem) {
  return problem.heads * row_tiles_of(problem) * ceil_div(problem.tokens, kWindowKeys) * kWindowRows;
}

inline WindowMaps window_maps(const DeviceWindowSumsParams& p) {
  constexpr std::uint64_t kElement = 2;  // bytes
  const auto channels = static_cast<std::uint64_t>(p.problem.head_dim);
  const std::uint64_t row_bytes = channels * kElement;
  WindowMaps maps;
  maps.q = make_tensor_map(
      {p.q,
       p.kv.dtype,
       {channels, static_cast<std::uint64_t>(p.problem.heads), static_cast<std::uint64_t>(p.problem.rows())},
       {row_bytes, static_cast<std::uint64_t>(p.q_row_stride) * kElement},
       {kSwizzleChannels, 1, kHalf}});
  maps.pool = make_tensor_map({p.kv.slots,
                               p.kv.dtype,
                               {channels, kHalf, 2 * static_cast<std::uint64_t>(p.pool_slots)},
                               {row_bytes, row_bytes * kHalf},
                               {kSwizzleChannels, kHalf, 1}});
  return maps;
}

// multiprocessors: two waves of CTAs, two of which share one.
inline WindowArguments window_arguments(const DeviceWindowSumsParams& p, int multiprocessors) {
  const WindowSumsProblem& problem = p.problem;
  WindowArguments a{};
  a.table = p.kv.table;
  a.table_stride = p.kv.table_stride;
  a.tokens = static_cast<int>(problem.tokens);
  a.first_position = static_cast<int>(problem.tokens - problem.rows());
  a.rows = static_cast<int>(problem.rows());
  a.row_tiles = static_cast<int>(row_tiles_of(problem));
  a.heads = problem.heads;
  a.group = problem.heads / problem.kv_heads;
  a.heads_a_list = problem.share_group ? a.group : 1;
  a.chunks = static_cast<int>(ceil_div(problem.tokens, kWindowKeys));
  const std::int64_t pairs = static_cast<std::int64_t>(a.heads) * a.row_tiles;
  const std::int64_t ranges =
      std::clamp<std::int64_t>(4LL * multiprocessors / std::max<std::int64_t>(pairs, 1), 1, a.chunks);
  a.range_chunks = static_cast<int>(ceil_div(a.chunks, ranges));
  a.scale_log2 = p.scale * 1.4426950408889634F;
  a.sums = static_cast<ChunkSum*>(p.workspace);
  a.logarithms = reinterpret_cast<float*>(a.sums + chunk_sums_of(problem));
  a.columns = p.columns;
  a.diagonals = p.diagonals;
  a.largest = problem.use == WindowUse::kLargest;
  return a;
}

template <typename T, int kHeadDim, bool kSums, bool kRing = true, bool kTokens = false>
void launch_window_pass(const WindowArguments& a, const WindowMaps& maps, StreamView stream) {
  launch(window_kernel<T, kHeadDim, kSums, kRing, kTokens>,
         {.grid = dim3(static_cast<unsigned>(a.heads * a.row_tiles),
                       static_cast<unsigned>(ceil_div(a.chunks, a.range_chunks))),
          .block = dim3(kWindowThreads),
          .shared_bytes = sizeof(WindowShared<T, kHeadDim>)},
         stream, a, maps);
}

}  // namespace tessera::cuda
