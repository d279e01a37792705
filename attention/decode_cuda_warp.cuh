// What one warp of decode attention does by itself: which pages it visits, and softmax attention over them.
#pragma once

#include "attention/decode_cuda_args.cuh"

namespace tessera::cuda {

// The pages of a list that one warp visits: index, index + kWarps, … below last. Names of 32 pages are
// fetched at once, one a lane; those that hold nothing for this rank are passed over.
template <int kWarps>
class PageCursor {
 public:
  __device__ PageCursor(const DecodeArgs& p, int list, const ListPages& keys, int index, int last)
      : p_(p), keys_(keys), index_(index), last_(last) {
    const int sequence = list / p.problem.lists;
    const int kv_head = list % p.problem.lists * p.problem.kv_heads / p.problem.lists;
    table_ = p.tables[sequence] + kv_head * p.table_stride;
  }

  // Brings the list's row of the table near while its pages are still being chosen.
  __device__ __forceinline__ void warm_table() const {
    constexpr int kLine = 128 / static_cast<int>(sizeof(std::int32_t));
    const int blocks = (keys_.newest + kBlockTokens - 1) / kBlockTokens;
    for (int block = static_cast<int>(threadIdx.x) * kLine; block < blocks; block += kWarps * 32 * kLine) {
      std::int32_t unused;
      asm volatile("ld.global.ca.b32 %0, [%1];" : "=r"(unused) : "l"(table_ + block));
    }
  }

  // Page lists exist from here on.
  __device__ __forceinline__ void read_list(int list) {
    const DecodeReach& reach = p_.reach;
    listed_ = reach.pages + (reach.page_begin != nullptr ? reach.page_begin[list] : list * reach.page_stride);
    count_ = reach.page_count[list];
  }

  // The next page: where it lies among the pages of all slots (slot · 4 + page of the block), its visible
  // rows, and whether it is the newest of the list. False: there are no more.
  __device__ __forceinline__ bool next(std::uint32_t& place, int& first, int& last, bool& newest) {
    while (waiting_ == 0) {
      if (index_ >= last_) return false;
      fetch();
    }
    const int lane = __ffs(static_cast<int>(waiting_)) - 1;
    waiting_ &= waiting_ - 1;
    place = __shfl_sync(~0u, place_, lane);
    const int rows = __shfl_sync(~0u, rows_, lane);
    first = rows & 0xff;
    last = rows >> 8 & 0xff;
    newest = rows >> 16 != 0;
    return true;
  }

 private:
  __device__ __forceinline__ void fetch() {
    const int index = index_ + static_cast<int>(threadIdx.x % 32) * kWarps;
    int slot = kNoSlot;
    if (index < last_) {
      const int page = listed_ == nullptr ? keys_.page(index) : listed_[index];
      int first;
      int last;
      keys_.rows(index, page, first, last);
      if (first < last && index < count_) slot = table_[page / kPagesOfBlock];
      place_ =
          static_cast<std::uint32_t>(slot) * kPagesOfBlock + static_cast<std::uint32_t>(page % kPagesOfBlock);
      rows_ = first | last << 8 | ((page + 1) * kPageTokens >= keys_.newest ? 1 << 16 : 0);
    }
    waiting_ = __ballot_sync(~0u, slot != kNoSlot);
    index_ += 32 * kWarps;
  }

  const DecodeArgs& p_;
  const ListPages& keys_;
  const std::int32_t* table_ = nullptr;
  const std::int32_t* listed_ = nullptr;
  int index_;
  int last_;
  int count_ = 0x7fffffff;  // pages that a list turned out to have, of those planned
  std::uint32_t place_ = 0;
  int rows_ = 0;
  std::uint32_t waiting_ = 0;  // lanes whose page was not given yet
};

// State of one warp: running maximum and sum of each head, and Oᵀ. Lane 4g + t holds heads 2t, 2t + 1 of each
// tile; its sums are those of keys g and g + 8 alone until they are reduced.
template <class T, int kHeadDim, int kTiles>
struct WarpAttention {
  static constexpr int kSteps = kHeadDim / 16;
  static constexpr int kRowBytes = kHeadDim * 2;
  using Mma = ptx::MmaType<T>;

  std::uint32_t q[kTiles][kSteps][2];
  float out[kTiles][kSteps][4];
  float maximum[kTiles][2];
  float sum[kTiles][2];

  // q_rows: (heads, D)
  __device__ __forceinline__ void load_query(const T* q_rows, int heads) {
    const int g = static_cast<int>(threadIdx.x % 32) / 4;
    const int t = static_cast<int>(threadIdx.x % 4);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int head = tile * kHeadTile + g;
      const auto* row = reinterpret_cast<const std::uint32_t*>(q_rows + head * kHeadDim);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        q[tile][step][0] = head < heads ? row[step * 8 + t] : 0u;
        q[tile][step][1] = head < heads ? row[step * 8 + t + 4] : 0u;
      }
    }
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      maximum[tile][0] = maximum[tile][1] = -INFINITY;
      sum[tile][0] = sum[tile][1] = 0;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[tile][step][i] = 0;
      }
    }
  }

  // keys: shared address of 16 rows of K, 16 rows of V after them; chunk c of row r lies at c ^ (r % 8).
  __device__ __forceinline__ void add_page(std::uint32_t keys, int first, int last, float scale_log2) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int g = lane / 4;
    float scores[kTiles][2][4] = {};  // even and odd steps apart: two short chains instead of a long one
    {
      const int row = lane % 16;
      const std::uint32_t base = keys + row * kRowBytes;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        std::uint32_t a[4];
        ptx::load_matrices(a, base + (((2 * step + lane / 16) ^ (row & 7)) << 4));
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          Mma::multiply_add(scores[tile][step & 1], a, q[tile][step][0], q[tile][step][1]);
        }
      }
    }
    const bool sees[2] = {g >= first && g < last, g + 8 >= first && g + 8 < last};
    std::uint32_t weights[kTiles][2];
    float shrink[kTiles][2];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float s[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[i] = sees[i / 2] ? (scores[tile][0][i] + scores[tile][1][i]) * scale_log2 : -INFINITY;
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float highest = fmaxf(s[i], s[i + 2]);
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 4));
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 8));
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 16));
        highest = fmaxf(highest, maximum[tile][i]);
        const float offset = finite_maximum(highest);
        shrink[tile][i] = exp2_fast(maximum[tile][i] - offset);
        maximum[tile][i] = highest;
        s[i] = exp2_fast(s[i] - offset);
        s[i + 2] = exp2_fast(s[i + 2] - offset);
        sum[tile][i] = sum[tile][i] * shrink[tile][i] + (s[i] + s[i + 2]);
      }
      weights[tile][0] = ptx::transpose_matrix(Mma::pack(s[0], s[1]));
      weights[tile][1] = ptx::transpose_matrix(Mma::pack(s[2], s[3]));
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (__any_sync(~0u, shrink[tile][0] != 1.0f || shrink[tile][1] != 1.0f)) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
          for (int i = 0; i < 4; ++i) out[tile][step][i] *= shrink[tile][i & 1];
        }
      }
    }
    {
      const int row = (lane & 7) + (lane & 16) / 2;
      const std::uint32_t base = keys + kPageTokens * kRowBytes + row * kRowBytes;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        std::uint32_t a[4];
        ptx::load_matrices_transposed(a, base + (((2 * step + (lane / 8 & 1)) ^ (row & 7)) << 4));
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          Mma::multiply_add(out[tile][step], a, weights[tile][0], weights[tile][1]);
        }
      }
    }
  }

  __device__ __forceinline__ void reduce_sums() {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sum[tile][i] += __shfl_xor_sync(~0u, sum[tile][i], 4);
        sum[tile][i] += __shfl_xor_sync(~0u, sum[tile][i], 8);
        sum[tile][i] += __shfl_xor_sync(~0u, sum[tile][i], 16);
      }
    }
  }
};

}  // namespace tessera::cuda
