#include <algorithm>
#include <bit>

#include "attention/decode_cuda.hpp"
#include "attention/decode_cuda_args.cuh"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/cuda_overlap.cuh"
#include "runtime/core/error.hpp"

namespace tessera::cuda {
namespace {

constexpr int kPlanThreads = 1024;
constexpr int kLeastShare = 8;     // pages of a CTA: one a warp
constexpr int kPagesOfChange = 8;  // that a CTA reads in the time that going on to a second list takes
constexpr float kLog2E = 1.4426950408889634f;

// ---- plan -------------------------------------------------------------------------------------------------

struct PlanArgs {
  DecodeProblem problem;
  DecodeReach reach;
  int ctas;
  PlanHead* head;
  std::int32_t* begin;
  CtaStart* starts;
};

// First page of each list among all, where each has a multiple of `unit` pages; returns how many there are.
__device__ __forceinline__ int lay_out(const PlanArgs& p, int unit, int* of_warp) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int lists = p.problem.all_lists();
  int before = 0;  // pages of the lists of earlier rounds
  for (int first = 0; first < lists; first += kPlanThreads) {
    const int list = first + thread;
    const int pages = list < lists ? list_pages(p.problem, p.reach, list).pages : 0;
    const int room = (pages + unit - 1) / unit * unit;
    int sum = room;  // inclusive
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(~0u, sum, distance);
      if (lane >= distance) sum += other;
    }
    if (lane == 31) of_warp[thread / 32] = sum;
    __syncthreads();
    int total = 0;
    for (int warp = 0; warp < kPlanThreads / 32; ++warp) {
      if (warp == thread / 32) sum += total;
      total += of_warp[warp];
    }
    if (list < lists) p.begin[list] = before + sum - room;
    before += total;
    __syncthreads();
  }
  if (thread == 0) p.begin[lists] = before;
  __syncthreads();
  return before;
}

__device__ __forceinline__ int sum_of_block(int value, int* of_warp) {
  static_assert(kPlanThreads == 32 * 32);
  const int thread = static_cast<int>(threadIdx.x);
  value = __reduce_add_sync(~0u, value);
  if (thread % 32 == 0) of_warp[thread / 32] = value;
  __syncthreads();
  value = __reduce_add_sync(~0u, of_warp[thread % 32]);
  __syncthreads();
  return value;
}

// The least share from `least` on that leaves each CTA one list, or 0 where that costs more than it saves.
__device__ __forceinline__ int share_within_lists(const PlanArgs& p, int least, int* of_warp) {
  const int list = static_cast<int>(threadIdx.x);
  const int lists = p.problem.all_lists();
  if (lists > min(p.ctas, kPlanThreads)) return 0;
  const int pages = list < lists ? list_pages(p.problem, p.reach, list).pages : 0;
  const auto fits = [&](int share) { return sum_of_block((pages + share - 1) / share, of_warp) <= p.ctas; };
  if (!fits(least + kPagesOfChange)) return 0;
  int share = least;
  while (!fits(share)) ++share;
  return share;
}

// One CTA: sums the pages of all lists, then looks up where each share starts.
__global__ __launch_bounds__(kPlanThreads) void plan_kernel(const __grid_constant__ PlanArgs p) {
  __shared__ int of_warp[kPlanThreads / 32];
  wait_for_previous();
  let_next_start();
  const int lists = p.problem.all_lists();
  int pages = lay_out(p, 1, of_warp);
  int share = max((pages + p.ctas - 1) / p.ctas, kLeastShare);
  const int own_share = share_within_lists(p, share, of_warp);
  if (own_share > 0) {
    share = own_share;
    pages = lay_out(p, share, of_warp);
  }
  if (threadIdx.x == 0) *p.head = {pages, share};
  for (int cta = static_cast<int>(threadIdx.x); cta < p.ctas; cta += kPlanThreads) {
    const int page = cta * share;
    CtaStart start;
    if (page < pages) {
      int low = 0;  // the last list that begins at or before the page, so that empty ones are passed over
      int high = lists;
      while (high - low > 1) {
        const int middle = (low + high) / 2;
        (p.begin[middle] <= page ? low : high) = middle;
      }
      const int size = list_pages(p.problem, p.reach, low).pages;
      const int first = page - p.begin[low];
      start = {low, first, size, min(share, own_share > 0 ? size - first : pages - page)};
    }
    p.starts[cta] = start;
  }
}

// ---- merge ------------------------------------------------------------------------------------------------

// One CTA a slice of 4 · quads channels of a row of the output; `quads` threads (a power of two) add partial
// results, and several such groups share them. The order of additions depends on the plan alone.
template <class T>
__global__ void merge_kernel(const __grid_constant__ DecodeArgs p, const int quads) {
  constexpr int kMostGroups = 32;
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ MaxSum of_group[kMostGroups];
  const int head_dim = p.problem.head_dim;
  const int heads = p.problem.heads_a_list();
  const std::size_t row = blockIdx.x;
  const int list = static_cast<int>(row) / heads;
  const int head = static_cast<int>(row) % heads;
  const int thread = static_cast<int>(threadIdx.x);
  const int quad = thread % quads;
  const int channel = (static_cast<int>(blockIdx.y) * quads + quad) * 4;
  const bool writes_lse = thread == 0 && blockIdx.y == 0 && p.lse != nullptr;

  // The kernel before this one attends, and lets nothing start before all ahead of it has ended: what follows
  // may take its place on a multiprocessor at once. The plan is older, too.
  let_next_start();
  const int share = p.plan.head->share;
  const int begin = p.plan.begin[list];
  const int end = p.plan.begin[list + 1];
  wait_for_previous();
  if (begin == end) {
    if (thread < quads) store_out<T>(p, row * head_dim + channel, make_float4(0, 0, 0, 0));
    if (writes_lse) p.lse[row] = -INFINITY;
    return;
  }
  const int first = begin / share;
  const int last = (end - 1) / share;
  if (first == last) return;  // one CTA had the whole list and wrote the result

  MaxSum ml = {-INFINITY, 0};
  float4 total = make_float4(0, 0, 0, 0);
  const auto add = [&](const MaxSum& one, const float4& out) {
    const float highest = fmaxf(ml.maximum, one.maximum);
    const float old_weight = exp2_fast(ml.maximum - finite_maximum(highest));
    const float weight = exp2_fast(one.maximum - finite_maximum(highest));
    ml = {highest, ml.sum * old_weight + one.sum * weight};
    total.x = total.x * old_weight + out.x * weight;
    total.y = total.y * old_weight + out.y * weight;
    total.z = total.z * old_weight + out.z * weight;
    total.w = total.w * old_weight + out.w * weight;
  };
  const int stride = static_cast<int>(blockDim.x) / quads;
#pragma unroll 4
  for (int cta = first + thread / quads; cta <= last; cta += stride) {
    const std::size_t partial = static_cast<std::size_t>(list + cta) * heads + head;
    add(p.partial_ml[partial],
        *reinterpret_cast<const float4*>(p.partial_out + partial * head_dim + channel));
  }
  for (int distance = quads; distance < 32; distance *= 2) {  // groups of one warp
    const MaxSum one = {__shfl_xor_sync(~0u, ml.maximum, distance), __shfl_xor_sync(~0u, ml.sum, distance)};
    add(one, make_float4(__shfl_xor_sync(~0u, total.x, distance), __shfl_xor_sync(~0u, total.y, distance),
                         __shfl_xor_sync(~0u, total.z, distance), __shfl_xor_sync(~0u, total.w, distance)));
  }
  const int width = max(quads, 32);  // threads of what is left to add
  const int group = thread / width;
  const int groups = static_cast<int>(blockDim.x) / width;
  float4* totals = reinterpret_cast<float4*>(shared);  // (groups, quads)
  if (thread % width < quads) totals[group * quads + quad] = total;
  if (thread % width == 0) of_group[group] = ml;
  __syncthreads();
  if (thread >= quads) return;
  ml = {-INFINITY, 0};
  total = make_float4(0, 0, 0, 0);
#pragma unroll 4
  for (int i = 0; i < groups; ++i) add(of_group[i], totals[i * quads + quad]);
  const float factor = ml.sum == 0 ? 0.0f : 1.0f / ml.sum;
  store_out<T>(p, row * head_dim + channel,
               make_float4(total.x * factor, total.y * factor, total.z * factor, total.w * factor));
  if (writes_lse) p.lse[row] = natural_lse(ml);
}

// ---- host -------------------------------------------------------------------------------------------------

std::size_t partial_count(const DecodeProblem& problem, const DecodeConfig& config) {
  return static_cast<std::size_t>(problem.all_lists() + config.ctas) *
         static_cast<std::size_t>(problem.heads_a_list());
}

std::size_t partial_out_bytes(const DecodeProblem& problem, const DecodeConfig& config) {
  return partial_count(problem, config) * static_cast<std::size_t>(problem.head_dim) * sizeof(float);
}

void check_problem(const DecodeProblem& problem) {
  TESSERA_CHECK(problem.head_dim == 64 || problem.head_dim == 128 || problem.head_dim == 256);
  TESSERA_CHECK(problem.lists == problem.kv_heads || problem.lists == problem.heads);
  TESSERA_CHECK(problem.kv_heads > 0 && problem.heads % problem.kv_heads == 0);
  TESSERA_CHECK(problem.heads_a_list() >= 1 && problem.heads_a_list() <= kMostHeadsOfList);
}

void check_reach(const DecodeReach& reach) {
  const int kinds = (reach.window != 0) + (reach.rows_of_head != nullptr) + (reach.pages != nullptr);
  TESSERA_CHECK(kinds <= 1 && (reach.window > 0 || reach.sinks == 0));
  TESSERA_CHECK(reach.positions != nullptr || reach.rows_of_head != nullptr);
  TESSERA_CHECK(reach.pages == nullptr || (reach.page_count != nullptr));
}

}  // namespace

DecodeConfig choose_decode_config(const DecodeProblem& problem, int multiprocessors) {
  check_problem(problem);
  DecodeConfig config;
  config.ctas = multiprocessors;
  config.warps = 4;
  // Few lists have many partial results each: those are spread over slices of 32 channels and many threads.
  const bool few = problem.all_lists() <= 32;
  // Up to 192 KiB a multiprocessor. Where there are few lists a CTA has few pages, and a long ring fills for
  // longer than it flows: 128K, K = 8, one sequence on an H100: 182 us with 3 stages, 187 with 6.
  config.stages = problem.head_dim == 256 || (problem.head_dim == 128 && few) ? 3 : 6;
  const unsigned parts = std::bit_ceil(static_cast<unsigned>(config.ctas / std::max(problem.all_lists(), 1)));
  config.merge_quads = few ? 8 : problem.head_dim / 4;
  config.merge_threads =
      few ? std::clamp<int>(static_cast<int>(parts) * config.merge_quads / 2, 64, 512) : 128;
  return config;
}

std::size_t decode_plan_bytes(const DecodeProblem& problem, const DecodeConfig& config) {
  const PlanView end = view_plan(nullptr, problem.all_lists());
  return reinterpret_cast<std::size_t>(end.starts + config.ctas);
}

std::size_t decode_workspace_bytes(const DecodeProblem& problem, const DecodeConfig& config) {
  return partial_out_bytes(problem, config) + partial_count(problem, config) * sizeof(MaxSum);
}

void plan_decode(const DecodePlanParams& p) {
  check_problem(p.problem);
  check_reach(p.reach);
  if (p.problem.sequences == 0) return;
  const PlanView view = view_plan(p.plan, p.problem.all_lists());
  PlanArgs args;
  args.problem = p.problem;
  args.reach = p.reach;
  args.ctas = p.config.ctas;
  args.head = const_cast<PlanHead*>(view.head);
  args.begin = const_cast<std::int32_t*>(view.begin);
  args.starts = const_cast<CtaStart*>(view.starts);
  LaunchShape shape;
  shape.grid = dim3(1);
  shape.block = dim3(kPlanThreads);
  shape.overlaps_previous = p.overlaps_previous;
  launch(plan_kernel, shape, p.stream, args);
}

void attend_decode(const DecodeAttendParams& p) {
  check_problem(p.problem);
  check_reach(p.reach);
  TESSERA_CHECK(p.dtype == DType::kBF16 || p.dtype == DType::kF16);
  TESSERA_CHECK(p.out_dtype == p.dtype || p.out_dtype == DType::kF32);
  if (p.problem.sequences == 0) return;
  DecodeArgs args;
  args.problem = p.problem;
  args.reach = p.reach;
  args.plan = view_plan(p.plan, p.problem.all_lists());
  args.q = p.q;
  args.slots = p.slots;
  args.slot_bytes = p.slot_bytes;
  args.tables = p.tables;
  args.table_stride = p.table_stride;
  args.scale_log2 = p.scale * kLog2E;
  args.partial_out = reinterpret_cast<float*>(p.workspace);
  args.partial_ml = reinterpret_cast<MaxSum*>(p.workspace + partial_out_bytes(p.problem, p.config));
  args.out = p.out;
  args.out_f32 = p.out_dtype == DType::kF32;
  args.lse = p.lse;
  args.settled = p.settled;

  const bool bf16 = p.dtype == DType::kBF16;
  const auto attend = bf16 ? launch_attend<__nv_bfloat16> : launch_attend<__half>;
  attend(args, p.config, p.overlaps_previous, p.stream);

  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(p.problem.sequences * p.problem.heads),
                    static_cast<unsigned>(p.problem.head_dim / 4 / p.config.merge_quads));
  shape.block = dim3(static_cast<unsigned>(p.config.merge_threads));
  shape.shared_bytes = shape.block.x * sizeof(float4);
  shape.overlaps_previous = true;
  launch(bf16 ? merge_kernel<__nv_bfloat16> : merge_kernel<__half>, shape, p.stream, args,
         p.config.merge_quads);
}

}  // namespace tessera::cuda
