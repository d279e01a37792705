// Sparse prefill for query blocks of 16 and 32 rows. A warp owns 16 rows of one query head and walks their
// list by itself; wgmma, which multiplies 64 rows, would spend three quarters on rows that do not see the
// keys. A page of 16 keys meets these 16 rows only, so nothing is gained by a stop in shared memory: lanes
// load the operands of mma.sync from L2 straight into registers, 16 bytes each. That takes channels in an
// order of its own (products do not mind, as long as both sides agree) and, for values, pairs of keys put
// together by byte_perm. Every 16 × 16 pairs read 64 · D bytes, and that is what takes the time. Warps of a
// CTA that share a list walk it together.
//
// Lane l = 4g + t holds (ptx/mma.cuh)
//   Q   rows g, g + 8; of 32 channels from 32j on those from 8t on: two steps of four channels
//   K   keys g and g + 8, the same channels
//   V   keys 2t, 2t + 1, 2t + 8, 2t + 9; of 64 channels from 64h on those from 8g on, one each in 8 products
//   O   rows g, g + 8; of 64 channels from 64h on those from 16t on
#pragma once

#include <cstdint>

#include "attention/prefill_softmax.cuh"
#include "attention/ptx/mma.cuh"
#include "attention/sparse_prefill_keys.cuh"

namespace tessera::cuda {

inline constexpr int kWarpRows = 16;
inline constexpr int kBlockPrefillWarps = 8;
inline constexpr int kBlockPrefillThreads = 32 * kBlockPrefillWarps;

struct BlockPrefillArguments {
  const std::int32_t* table;  // (K, table_stride)
  const ListItem* order;      // (lists · row_blocks): row = list · row_blocks + index into rows
  const QueryRows* rows;      // (row_blocks)
  const BlockEntry* entries;
  const void* q;     // (T, H, D)
  const void* pool;  // (slots, 2, 64, D)
  void* out;         // (T, H, D)
  float* lse;        // (T, H) or null
  std::uint32_t* counters;
  std::int64_t table_stride;
  std::int64_t q_row_stride;
  int length;         // S
  int heads;          // H
  int group;          // G
  int heads_a_list;   // query heads that share a list
  int tiles_a_block;  // of 16 rows
  int row_blocks;
  int tiles;  // of all lists, heads and row blocks
  float scale;
};

struct ListedPage {
  int place;  // slot · 4 + page of the block
  int first;  // position of its first key
};

// The pages of a list that the table holds and that positions up to `high` can see, in the order of the list.
// A warp walks together: every lane looks at one entry; the slots of the next 32 entries and the 32 entries
// after those are on their way. A block may be named again for other pages.
class PageWalk {
 public:
  __device__ __forceinline__ PageWalk(const BlockEntry* entries, int count, const std::int32_t* table,
                                      int high)
      : table_(table),
        entry_(entries + threadIdx.x % 32),
        left_(count - static_cast<int>(threadIdx.x % 32)),
        batches_((count + 31) / 32),
        high_(high) {
    ahead_ = load_entry();
    request_slot();
    ahead_ = load_entry();
  }

  __device__ __forceinline__ bool next(ListedPage& page) {
    while (mask_ == 0) {
      while (waiting_ == 0) {
        if (batches_ == 0) return false;
        fetch();
      }
      const int lane = __ffs(static_cast<int>(waiting_)) - 1;
      waiting_ &= waiting_ - 1;
      const std::uint32_t bits = __shfl_sync(0xFFFFFFFF, bits_, lane);
      slot_ = __shfl_sync(0xFFFFFFFF, slots_, lane);
      block_ = static_cast<int>(bits >> 4);
      mask_ = bits & 15U;
    }
    const int index = __ffs(static_cast<int>(mask_)) - 1;
    mask_ &= mask_ - 1;
    page.place = slot_ * kBlockPages + index;
    page.first = block_ * kBlockTokens + index * kPageTokens;
    return true;
  }

 private:
  // Without pages where there are no more.
  __device__ __forceinline__ std::uint32_t load_entry() {
    const std::uint32_t bits = left_ > 0 ? entry_->bits : 0U;
    entry_ += 32;
    left_ -= 32;
    return bits;
  }
  __device__ __forceinline__ void request_slot() {
    const int block = static_cast<int>(ahead_ >> 4);
    const int pages = (high_ >> 4) - block * kBlockPages + 1;  // that begin no later than `high`
    std::uint32_t mask = ahead_ & 15U;
    if (pages < kBlockPages) mask = pages <= 0 ? 0U : mask & ((1U << pages) - 1U);
    upcoming_ = (ahead_ & ~15U) | mask;
    upcoming_slot_ = mask != 0 ? __ldg(table_ + block) : kNoSlot;
  }
  __device__ __forceinline__ void fetch() {
    --batches_;
    bits_ = upcoming_;
    slots_ = upcoming_slot_;
    request_slot();
    ahead_ = load_entry();
    waiting_ = __ballot_sync(0xFFFFFFFF, slots_ != kNoSlot);
  }

  const std::int32_t* table_;
  const BlockEntry* entry_;  // the next of this lane
  int left_;                 // of the list, from this lane's next on
  int batches_;
  int high_;
  std::uint32_t ahead_ = 0;
  std::uint32_t upcoming_ = 0;
  int upcoming_slot_ = kNoSlot;
  std::uint32_t bits_ = 0;  // of this lane's entry
  int slots_ = kNoSlot;
  std::uint32_t waiting_ = 0;  // lanes whose entry was not taken yet
  int slot_ = 0;               // of the block whose pages are given now
  int block_ = 0;
  std::uint32_t mask_ = 0;  // pages of it still to give
};

// Stays where it is written among the products, so that it is under way while they run.
__device__ __forceinline__ uint4 load_chunk(const void* address) {
  uint4 value;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address));
  return value;
}

// 16 rows of one head: running softmax and output.
template <typename T, int kHeadDim>
struct WarpRows {
  static constexpr int kGroups = kHeadDim / 32;
  static constexpr int kHalves = kHeadDim / 64;
  static constexpr float kSlack = 8;
  using Mma = ptx::MmaType<T>;

  std::uint32_t q[2 * kGroups][4];
  uint4 keys[kGroups][2];
  uint4 values[kHalves][4];
  float out[kHalves][8][4];
  RowPair rows;
  int position[2];

  // tokens: rows that exist; the others repeat the last one.
  __device__ __forceinline__ void begin(const T* q_rows, std::int64_t stride, int first_position,
                                        int tokens) {
    const int g = static_cast<int>(threadIdx.x % 32) / 4;
    const int t = static_cast<int>(threadIdx.x % 4);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(g + 8 * r, tokens - 1);
      position[r] = first_position + row;
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        const uint4 words = load_chunk(q_rows + row * stride + 32 * j + 8 * t);
        q[2 * j][r] = words.x;
        q[2 * j][2 + r] = words.y;
        q[2 * j + 1][r] = words.z;
        q[2 * j + 1][2 + r] = words.w;
      }
      rows.top[r] = negative_infinity();
      rows.sum[r] = 0;
    }
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[h][j][i] = 0;
      }
    }
  }

  // page: 16 rows of K
  __device__ __forceinline__ void load_keys(const T* page) {
    const int g = static_cast<int>(threadIdx.x % 32) / 4;
    const int t = static_cast<int>(threadIdx.x % 4);
    const T* const source = page + g * kHeadDim + 8 * t;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int n = 0; n < 2; ++n) keys[j][n] = load_chunk(source + 8 * n * kHeadDim + 32 * j);
    }
  }
  // page: 16 rows of V
  __device__ __forceinline__ void load_values(const T* page) {
    const int g = static_cast<int>(threadIdx.x % 32) / 4;
    const int t = static_cast<int>(threadIdx.x % 4);
    const T* const source = page + 2 * t * kHeadDim + 8 * g;
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        values[h][i] = load_chunk(source + (i / 2 * 8 + i % 2) * kHeadDim + 64 * h);
      }
    }
  }

  __device__ __forceinline__ void multiply_keys(float (&scores)[8]) const {
    float parts[2][2][4] = {};  // even and odd steps apart: short chains
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        Mma::multiply_add(parts[0][n], q[2 * j], keys[j][n].x, keys[j][n].y);
        Mma::multiply_add(parts[1][n], q[2 * j + 1], keys[j][n].z, keys[j][n].w);
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) scores[i] = parts[0][i / 4][i % 4] + parts[1][i / 4][i % 4];
  }

  // Of a page that starts at `first`: keys that a row does not see, and those that do not exist, whose values
  // may be anything.
  __device__ __forceinline__ void mask(float (&scores)[8], int first, int length) {
    const int t = static_cast<int>(threadIdx.x % 4);
    const int high[2] = {min(position[0], length - 1) - first, min(position[1], length - 1) - first};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i / 4 * 8 + 2 * t + i % 2 > high[i % 4 / 2]) scores[i] = negative_infinity();
    }
    if (first + kPageTokens <= length) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (first + 2 * t + i / 2 * 8 + i % 2 < length) continue;
#pragma unroll
      for (int h = 0; h < kHalves; ++h) values[h][i] = make_uint4(0, 0, 0, 0);
    }
  }

  __device__ __forceinline__ void add_values(float (&scores)[8], float scale_log2) {
    float factor[2];
    softmax_step(scores, rows, factor, scale_log2, kSlack);
    if (__any_sync(0xFFFFFFFF, factor[0] != 1.0F || factor[1] != 1.0F)) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
#pragma unroll
        for (int j = 0; j < 8; ++j) scale_rows(out[h][j], factor);
      }
    }
    const std::uint32_t weights[4] = {Mma::pack(scores[0], scores[1]), Mma::pack(scores[2], scores[3]),
                                      Mma::pack(scores[4], scores[5]), Mma::pack(scores[6], scores[7])};
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      const uint4(&v)[4] = values[h];
      add_pair(out[h][0], out[h][1], weights, v[0].x, v[1].x, v[2].x, v[3].x);
      add_pair(out[h][2], out[h][3], weights, v[0].y, v[1].y, v[2].y, v[3].y);
      add_pair(out[h][4], out[h][5], weights, v[0].z, v[1].z, v[2].z, v[3].z);
      add_pair(out[h][6], out[h][7], weights, v[0].w, v[1].w, v[2].w, v[3].w);
    }
  }

  // token: the first of the rows; tokens: how many there are.
  __device__ __forceinline__ void store(const BlockPrefillArguments& p, int head, int token, int tokens) {
    const int g = static_cast<int>(threadIdx.x % 32) / 4;
    const int t = static_cast<int>(threadIdx.x % 4);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = quad_sum(rows.sum[r]);
      if (g + 8 * r >= tokens) continue;
      const bool empty = rows.top[r] == negative_infinity();
      const float inverse = empty ? 0.0F : 1.0F / sum;
      const std::int64_t row = static_cast<std::int64_t>(token + g + 8 * r) * p.heads + head;
      if (p.lse != nullptr && t == 0) {
        p.lse[row] = empty ? negative_infinity() : fmaf(rows.top[r], p.scale, logf(sum));
      }
      T* const target = static_cast<T*>(p.out) + row * kHeadDim + 16 * t;
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int i = 2 * r + side;
          const float(&o)[8][4] = out[h];
          *reinterpret_cast<uint4*>(target + 64 * h + 8 * side) =
              make_uint4(Mma::pack(o[0][i] * inverse, o[1][i] * inverse),
                         Mma::pack(o[2][i] * inverse, o[3][i] * inverse),
                         Mma::pack(o[4][i] * inverse, o[5][i] * inverse),
                         Mma::pack(o[6][i] * inverse, o[7][i] * inverse));
        }
      }
    }
  }

 private:
  // a … d: the same two channels of four keys; even and odd channels go to products of their own.
  static __device__ __forceinline__ void add_pair(float (&even)[4], float (&odd)[4],
                                                  const std::uint32_t (&weights)[4], std::uint32_t a,
                                                  std::uint32_t b, std::uint32_t c, std::uint32_t d) {
    Mma::multiply_add(even, weights, __byte_perm(a, b, 0x5410), __byte_perm(c, d, 0x5410));
    Mma::multiply_add(odd, weights, __byte_perm(a, b, 0x7632), __byte_perm(c, d, 0x7632));
  }
};

template <typename T, int kHeadDim>
__device__ __forceinline__ void attend_tile(const BlockPrefillArguments& p, int tile) {
  const int copies = p.heads_a_list * p.tiles_a_block;
  const ListItem item = p.order[tile / copies];
  const int list = item.row / p.row_blocks;
  const QueryRows block = p.rows[item.row - list * p.row_blocks];
  const int copy = tile % copies;
  const int head = list * p.heads_a_list + copy / p.tiles_a_block;
  const int first = copy % p.tiles_a_block * kWarpRows;  // row of the block
  if (first >= block.rows) return;
  const int tokens = min(block.rows - first, kWarpRows);
  const int token = block.token + first;
  const int position = block.position + first;

  const int kv_head = head / p.group;
  WarpRows<T, kHeadDim> rows;
  rows.begin(static_cast<const T*>(p.q) + token * p.q_row_stride + static_cast<std::int64_t>(head) * kHeadDim,
             p.q_row_stride, position, tokens);
  PageWalk walk(p.entries + item.begin, item.count, p.table + kv_head * p.table_stride,
                min(position + tokens, p.length) - 1);
  constexpr int kPageElements = kPageTokens * kHeadDim;
  constexpr int kValues = kBlockTokens * kHeadDim;  // where they begin in a slot
  const auto keys_of = [&](const ListedPage& page) {
    const std::int64_t slot = page.place / kBlockPages;
    return static_cast<const T*>(p.pool) + slot * (2 * kValues) + page.place % kBlockPages * kPageElements;
  };
  const float scale_log2 = p.scale * 1.44269504F;
  ListedPage page;
  bool any = walk.next(page);
  if (any) rows.load_keys(keys_of(page));
  while (any) {
    rows.load_values(keys_of(page) + kValues);
    float scores[8];
    rows.multiply_keys(scores);
    const int start = page.first;
    any = walk.next(page);
    if (any) rows.load_keys(keys_of(page));
    if (start + kPageTokens > min(position + 1, p.length)) rows.mask(scores, start, p.length);
    rows.add_values(scores, scale_log2);
  }
  rows.store(p, head, token, tokens);
}

// Tiles go to whoever is free, longest lists first: to a warp, or where several share a list to all warps of
// a CTA at once.
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kBlockPrefillThreads, kHeadDim == 64 ? 2 : 1)
    block_prefill_kernel(const BlockPrefillArguments p) {
  __shared__ int first_tile;
  const bool together = p.heads_a_list * p.tiles_a_block > 1;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (together) {
    for (;;) {
      __syncthreads();  // first_tile was read
      if (threadIdx.x == 0) first_tile = static_cast<int>(atomicAdd(p.counters, kBlockPrefillWarps));
      __syncthreads();
      if (first_tile >= p.tiles) break;
      if (first_tile + warp < p.tiles) attend_tile<T, kHeadDim>(p, first_tile + warp);
    }
  } else {
    for (;;) {
      int tile = 0;
      if (threadIdx.x % 32 == 0) tile = static_cast<int>(atomicAdd(p.counters, 1U));
      tile = __shfl_sync(0xFFFFFFFF, tile, 0);
      if (tile >= p.tiles) break;
      attend_tile<T, kHeadDim>(p, tile);
    }
  }
  __syncthreads();
  // The last to ask leaves the counters as it found them.
  if (threadIdx.x == 0 && atomicAdd(p.counters + 1, 1U) == gridDim.x - 1) {
    p.counters[0] = 0;
    p.counters[1] = 0;
  }
}

}  // namespace tessera::cuda
