// What the kernels of decode attention share (attention/decode_cuda.hpp): the plan as it lies in memory,
// their arguments, the pages that a list visits, and the arithmetic of partial softmax results.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "attention/decode_cuda.hpp"
#include "attention/ptx/mma.cuh"
#include "kvcache/kv_view.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {

inline constexpr int kHeadTile = 8;  // query heads in an mma tile
inline constexpr int kPagesOfBlock = kBlockTokens / kPageTokens;
inline constexpr int kMostHeadsOfList = 16;

// What the plan kernel writes: this head, then begin (lists + 1), then a start for each CTA.
struct PlanHead {
  std::int32_t pages = 0;  // of all lists, with their room
  std::int32_t share = 0;  // pages of a CTA
};
struct alignas(16) CtaStart {
  std::int32_t list = 0;
  std::int32_t first = 0;      // page within the list
  std::int32_t list_size = 0;  // pages of that list: beside the others, since the first loads of a CTA wait
  std::int32_t rest = 0;       // pages of the CTA: 0 … share
};
inline constexpr std::size_t kPlanHeadBytes = 16;

// CTA c takes pages c · share … of the concatenated lists. Where it costs little, lists are given room for
// whole shares, so that no CTA has two of them. A list that several CTAs share leaves one partial result with
// each: number c + list, which ascends with both.
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

// Starts attend_kernel. Instantiated for each type in a file of its own: attention/decode_cuda_bf16.cu,
// attention/decode_cuda_f16.cu.
template <class T>
void launch_attend(const DecodeArgs& args, const DecodeConfig& config, bool overlaps_previous,
                   StreamView stream);

}  // namespace tessera::cuda
