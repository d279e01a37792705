// The kernel that attends, and what it shares with the plan and the merge (attention/decode_cuda.hpp).
//
// Scores are computed transposed, Sᵀ (16 keys × 8 heads) = K Qᵀ and Oᵀ (D × 8 heads) += Vᵀ Pᵀ, so that the
// heads of a group lie in the 8 columns of mma.m16n8k16: a group of 8 fills the tile, and a page of 16 keys
// is its other edge. Each warp runs by itself over its pages, with its own ring of stages that cp.async
// fills; warps meet only at the end of a list.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "attention/decode_cuda.hpp"
#include "attention/ptx/cp_async.cuh"
#include "attention/ptx/grid_dependency.cuh"
#include "attention/ptx/mma.cuh"
#include "kvcache/kv_view.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {

inline constexpr int kHeadTile = 8;  // query heads in an mma tile
inline constexpr int kPagesOfBlock = kBlockTokens / kPageTokens;
inline constexpr int kMostHeadsOfList = 16;

// What the plan kernel writes: this head, then begin (lists + 1), then a start for each CTA.
struct PlanHead {
  std::int32_t pages = 0;  // of all lists
  std::int32_t share = 0;  // pages of a CTA
};
struct alignas(16) CtaStart {
  std::int32_t list = 0;
  std::int32_t first = 0;      // page within the list
  std::int32_t list_size = 0;  // pages of that list: beside the others, since the first loads of a CTA wait
  std::int32_t rest = 0;       // pages of the CTA: 0 … share
};
inline constexpr std::size_t kPlanHeadBytes = 16;

// CTA c takes pages c · share … of the concatenated lists. A list that several CTAs share leaves one partial
// result with each: number c + list, which ascends with both.
struct PlanView {
  const PlanHead* head;
  const std::int32_t* begin;  // (lists + 1) first page of each list among all
  const CtaStart* starts;     // (ctas)
};
__host__ __device__ inline PlanView view_plan(const std::byte* plan, int all_lists) {
  const std::byte* begin = plan + kPlanHeadBytes;
  const std::size_t begin_bytes = (static_cast<std::size_t>(all_lists) + 1 + 3) / 4 * 16;
  return {reinterpret_cast<const PlanHead*>(plan), reinterpret_cast<const std::int32_t*>(begin),
          reinterpret_cast<const CtaStart*>(begin + begin_bytes)};
}

struct MaxSum {
  float maximum;  // of the scores, times log2 e
  float sum;      // of 2^(score − maximum)
};

struct DecodeArgs {
  DecodeProblem problem;
  DecodeReach reach;
  PlanView plan;
  const std::byte* q;
  const std::byte* slots;
  std::size_t slot_bytes;
  const std::int32_t* const* tables;
  std::int64_t table_stride;
  float scale_log2;    // scale · log2 e
  float* partial_out;  // (ctas + lists, heads a list, D), not divided by the sum
  MaxSum* partial_ml;  // (ctas + lists, heads a list)
  std::byte* out;
  bool out_f32;
  float* lse;
  bool settled;
};

// The pages that a list visits, numbered 0 … pages − 1: those of the sinks, then the others.
struct ListPages {
  int pages;
  int sink_pages;
  int sinks;
  int first_page;  // of the others
  int oldest;      // visible keys of the others: oldest … newest − 1
  int newest;

  // First and last visible row of a page, and whether it is listed; listed: its id.
  __device__ __forceinline__ int page(int index) const {
    return index < sink_pages ? index : first_page + index - sink_pages;
  }
  __device__ __forceinline__ void rows(int index, int page, int& first, int& last) const {
    const int begin = index < sink_pages ? 0 : oldest;
    const int end = index < sink_pages ? sinks : newest;
    first = min(max(begin - page * kPageTokens, 0), kPageTokens);
    last = min(max(end - page * kPageTokens, 0), kPageTokens);
  }
};

__device__ __forceinline__ int pages_of(int tokens) {
  return (tokens + kPageTokens - 1) / kPageTokens;
}

__device__ __forceinline__ ListPages list_pages(const DecodeProblem& problem, const DecodeReach& reach,
                                                int list) {
  ListPages keys{};
  const int sequence = list / problem.lists;
  if (reach.rows_of_head != nullptr) {
    const int kv_head = list % problem.lists * problem.kv_heads / problem.lists;
    keys.newest = reach.rows_of_head[sequence * problem.kv_heads + kv_head];
    keys.pages = pages_of(keys.newest);
    return keys;
  }
  const int position = reach.positions[sequence];
  keys.newest = position + 1;
  if (reach.lengths != nullptr) keys.newest = min(keys.newest, reach.lengths[sequence]);
  keys.newest = max(keys.newest, 0);
  if (reach.pages != nullptr) {
    keys.pages = reach.budget_pages < 0 ? reach.page_count[list]
                                        : min(reach.budget_pages, max(position, 0) / kPageTokens) + 1;
    return keys;
  }
  keys.oldest = reach.window == 0 ? 0 : max(0, position - reach.window + 1);
  if (reach.sinks >= keys.oldest) {
    keys.oldest = 0;
  } else {
    keys.sinks = min(reach.sinks, keys.newest);
    keys.sink_pages = pages_of(keys.sinks);
  }
  keys.first_page = keys.oldest / kPageTokens;
  keys.pages = keys.sink_pages + max(0, pages_of(keys.newest) - keys.first_page);
  return keys;
}

// exp2 and log2 of the hardware: relative error below 2^-22.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// −inf − −inf must not show: nothing seen so far weighs nothing.
__device__ __forceinline__ float finite_maximum(float maximum) {
  return maximum == -INFINITY ? 0.0f : maximum;
}

template <class T, int kHeadDim, int kTiles, int kWarps, int kStages>
struct DecodeShape {
  static constexpr int kRowBytes = kHeadDim * 2;
  static constexpr int kRowChunks = kRowBytes / 16;
  static constexpr int kHalfBytes = kPageTokens * kRowBytes;  // the keys of a page, or its values
  static constexpr int kPageBytes = 2 * kHalfBytes;
  static constexpr int kHeads = kTiles * kHeadTile;
  static constexpr int kMergeStride = kHeadDim + 4;  // floats; spreads a fragment's heads over the banks
  static constexpr int kRingBytes = kWarps * kStages * kPageBytes;
  static constexpr int kMergeBytes = kWarps * kHeads * kMergeStride * 4;
  static constexpr int kSharedBytes = kRingBytes > kMergeBytes ? kRingBytes : kMergeBytes;
  static constexpr int kCtasOfSm = 2 * (kSharedBytes + 4096) <= 227 * 1024 ? 2 : 1;
};

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

template <class T>
__device__ __forceinline__ void store_out(const DecodeArgs& p, std::size_t element, float4 value) {
  if (p.out_f32) {
    *reinterpret_cast<float4*>(p.out + element * 4) = value;
    return;
  }
  using Mma = ptx::MmaType<T>;
  *reinterpret_cast<uint2*>(p.out + element * 2) =
      make_uint2(Mma::pack(value.x, value.y), Mma::pack(value.z, value.w));
}

inline constexpr float kLn2 = 0.6931471805599453f;

__device__ __forceinline__ float natural_lse(MaxSum ml) {
  return ml.sum == 0 ? -INFINITY : (ml.maximum + log2f(ml.sum)) * kLn2;
}

template <class T, int kHeadDim, int kTiles, int kWarps, int kStages>
__global__ __launch_bounds__(
    kWarps * 32,
    (DecodeShape<T, kHeadDim, kTiles, kWarps, kStages>::kCtasOfSm)) void attend_kernel(const __grid_constant__
                                                                                           DecodeArgs p) {
  using Shape = DecodeShape<T, kHeadDim, kTiles, kWarps, kStages>;
  using Warp = WarpAttention<T, kHeadDim, kTiles>;
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ int visible[kWarps][kStages];  // first | last << 8 of the page in each stage
  __shared__ MaxSum of_warp[kWarps][Shape::kHeads];

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int g = lane / 4;
  const int t = lane % 4;
  const int heads = p.problem.heads_a_list();
  std::byte* ring = shared + warp * kStages * Shape::kPageBytes;
  const std::uint32_t ring_address = ptx::shared_address(ring);

  bool waited = false;
  const auto wait = [&] {
    if (waited) return;
    ptx::wait_for_previous_kernel();
    ptx::let_next_kernel_start();
    waited = true;
  };
  if (!p.settled) wait();
  const int cta = static_cast<int>(blockIdx.x);
  const CtaStart start = p.plan.starts[cta];
  int rest = start.rest;

  Warp state;
  for (int list = start.list; rest > 0; ++list) {
    const bool later = list != start.list;
    const int first_page = later ? 0 : start.first;
    const int list_size = later ? p.plan.begin[list + 1] - p.plan.begin[list] : start.list_size;
    const int last_page = min(list_size, first_page + rest);
    if (last_page == first_page) continue;  // an empty list
    rest -= last_page - first_page;

    const ListPages keys = list_pages(p.problem, p.reach, list);
    PageCursor<kWarps> cursor(p, list, keys, first_page + warp, last_page);
    if (p.reach.pages != nullptr) {
      wait();
      cursor.read_list(list);
    }
    int issued = 0;
    const auto issue = [&](int stage) {
      std::uint32_t place;
      int first;
      int last;
      bool newest;
      if (cursor.next(place, first, last, newest)) {
        if (newest) wait();
        const std::byte* source = p.slots + static_cast<std::size_t>(place / kPagesOfBlock) * p.slot_bytes +
                                  place % kPagesOfBlock * Shape::kHalfBytes;
        const std::uint32_t target = ring_address + stage * Shape::kPageBytes;
#pragma unroll
        for (int i = 0; i < Shape::kHalfBytes / 512; ++i) {
          const int chunk = i * 32 + lane;
          const int row = chunk / Shape::kRowChunks;
          const int column = chunk % Shape::kRowChunks;
          const std::uint32_t offset = row * Shape::kRowBytes + ((column ^ (row & 7)) << 4);
          const bool seen = row >= first && row < last;
          ptx::copy_16_bytes(target + offset, source + chunk * 16, seen);
          ptx::copy_16_bytes(target + Shape::kHalfBytes + offset,
                             source + kBlockTokens * Shape::kRowBytes + chunk * 16, seen);
        }
        if (lane == 0) visible[warp][stage] = first | last << 8;
        ++issued;
      }
      ptx::commit_copies();
    };

#pragma unroll 1
    for (int stage = 0; stage < kStages - 1; ++stage) issue(stage);
    wait();
    state.load_query(reinterpret_cast<const T*>(p.q) + static_cast<std::size_t>(list) * heads * kHeadDim,
                     heads);
    state.clear();
    int stage = 0;
    for (int done = 0; done < issued; ++done) {
      ptx::wait_copies<kStages - 2>();
      __syncwarp();
      issue(stage == 0 ? kStages - 1 : stage - 1);  // the stage that was read last
      const int rows = visible[warp][stage];
      state.add_page(ring_address + stage * Shape::kPageBytes, rows & 0xff, rows >> 8, p.scale_log2);
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }
    ptx::wait_copies<0>();
    state.reduce_sums();
    if (g == 0) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          of_warp[warp][tile * kHeadTile + 2 * t + i] = {state.maximum[tile][i], state.sum[tile][i]};
        }
      }
    }
    __syncthreads();  // all rings are read; from here they hold the outputs of the warps
    float* outs = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int head = tile * kHeadTile + 2 * t + i;
        float highest = -INFINITY;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) highest = fmaxf(highest, of_warp[w][head].maximum);
        const float weight = exp2_fast(state.maximum[tile][i] - finite_maximum(highest));
        float* out = outs + (warp * Shape::kHeads + head) * Shape::kMergeStride + g;
#pragma unroll
        for (int step = 0; step < Warp::kSteps; ++step) {
          out[step * 16] = state.out[tile][step][i] * weight;
          out[step * 16 + 8] = state.out[tile][step][i + 2] * weight;
        }
      }
    }
    __syncthreads();
    const bool whole = first_page == 0 && last_page == list_size;  // no other CTA has a share of the list
    constexpr int kQuads = kHeadDim / 4;
    for (int i = static_cast<int>(threadIdx.x); i < heads * kQuads; i += kWarps * 32) {
      const int head = i / kQuads;
      const int quad = i % kQuads;
      MaxSum ml = {-INFINITY, 0};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) ml.maximum = fmaxf(ml.maximum, of_warp[w][head].maximum);
      float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float4 one = *reinterpret_cast<const float4*>(
            outs + (w * Shape::kHeads + head) * Shape::kMergeStride + quad * 4);
        ml.sum += of_warp[w][head].sum * exp2_fast(of_warp[w][head].maximum - finite_maximum(ml.maximum));
        total.x += one.x;
        total.y += one.y;
        total.z += one.z;
        total.w += one.w;
      }
      const std::size_t row = static_cast<std::size_t>(whole ? list : list + cta) * heads + head;
      if (whole) {
        const float factor = ml.sum == 0 ? 0.0f : 1.0f / ml.sum;
        total = make_float4(total.x * factor, total.y * factor, total.z * factor, total.w * factor);
        store_out<T>(p, row * kHeadDim + quad * 4, total);
        if (quad == 0 && p.lse != nullptr) p.lse[row] = natural_lse(ml);
      } else {
        *reinterpret_cast<float4*>(p.partial_out + row * kHeadDim + quad * 4) = total;
        if (quad == 0) p.partial_ml[row] = ml;
      }
    }
    __syncthreads();  // the rings may be filled again
  }
  wait();
}

// One instantiation a file of its own: attention/decode_cuda_bf16.cu, attention/decode_cuda_f16.cu.
template <class T>
void launch_attend(const DecodeArgs& args, const DecodeConfig& config, bool overlaps_previous,
                   StreamView stream);

}  // namespace tessera::cuda
