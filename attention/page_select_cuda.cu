// The highest pages of each list (attention/page_select_cuda.hpp), one CTA a list: a histogram over the range
// of the scores finds the bin of the last chosen page, and the few pages in it are compared one by one; where
// many share the bin it is divided again. One multiprocessor does all of a list, so that instructions count.
#include "attention/page_select_cuda.hpp"

#include <algorithm>

#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/cuda_overlap.cuh"
#include "runtime/core/error.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kKept =
    10;  // places a thread keeps in registers: 160K tokens; those of longer lists are read again
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kFew = 32;  // pages of a bin that a warp can compare

struct SelectArgs {
  PageSelectProblem problem;
  int budget_pages;
  const std::int32_t* positions;
  const float* scores;
  std::int64_t score_stride;
  std::int32_t* pages;
  std::int64_t page_stride;
  std::int32_t* page_begin;
  std::int32_t* page_count;
  bool settled;
};

// Order of rank_of_score, moved to unsigned: 0 not held, 1 NaN, then −inf … inf; both zeros are equal.
__device__ __forceinline__ std::uint32_t place_of_score(float score) {
  const std::uint32_t bits = __float_as_uint(score);
  std::uint32_t place =
      bits ^ (static_cast<std::uint32_t>(static_cast<std::int32_t>(bits) >> 31) | 0x80000000u);
  place = bits << 1 == 0 ? 0x80000000u : place;
  place = (bits & 0x7fffffffu) > 0x7f800000u ? 1u : place;
  return bits == kPageNotHeld ? 0u : place;
}

// The places of one list. Each warp has a run of neighbouring pages, 32 at a time.
struct Places {
  const float* scores;
  int begin;  // of the run
  int end;
  std::uint32_t kept[kKept];
  int rounds;  // of 32 pages

  __device__ __forceinline__ Places(const float* list_scores, int pages) : scores(list_scores) {
    const int run = (pages + kThreads - 1) / kThreads * 32;
    begin = min(pages, static_cast<int>(threadIdx.x) / 32 * run);
    end = min(pages, begin + run);
    rounds = run / 32;
    if (rounds > kKept) return;
    const int page = begin + static_cast<int>(threadIdx.x % 32);
    float loaded[kKept];  // all loads are under way before the first is used
#pragma unroll
    for (int i = 0; i < kKept; ++i) loaded[i] = page + i * 32 < end ? scores[page + i * 32] : 0.0f;
#pragma unroll
    for (int i = 0; i < kKept; ++i) kept[i] = page + i * 32 < end ? place_of_score(loaded[i]) : 0;
  }
  // visit(first page, place of page first + lane; 0 past the end), 32 pages at a time, ascending.
  template <class Visit>
  __device__ __forceinline__ void each(const Visit& visit) const {
    if (rounds <= kKept) {
#pragma unroll
      for (int i = 0; i < kKept; ++i) {
        if (i >= rounds) break;
        visit(begin + i * 32, kept[i]);
      }
      return;
    }
#pragma unroll 1
    for (int first = begin; first < end; first += 32) {
      const int page = first + static_cast<int>(threadIdx.x % 32);
      visit(first, page < end ? place_of_score(scores[page]) : 0);
    }
  }
};

struct SelectShared {
  int bins[kBins];
  int of_warp[kWarps];
  std::uint32_t lowest[kWarps];
  std::uint32_t highest[kWarps];
  int held[kWarps];
  std::uint32_t few[kFew];
  int few_count;
  int digit;
  int above;
  int inside;
};

__device__ __forceinline__ void clear_bins(SelectShared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  reinterpret_cast<int2*>(shared.bins)[thread] = make_int2(0, 0);
  if (thread == 0) shared.few_count = 0;
}

// Chosen are the pages whose place is above `place`, and the first `ties` of those that have it.
struct Border {
  std::uint32_t place;
  int ties;
};

// The `count`-th highest of `inside` ≤ kFew places, by every warp alike.
__device__ __forceinline__ Border border_of_few(const SelectShared& shared, int inside, int count) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::uint32_t own = lane < inside ? shared.few[lane] : 0;
  int above = 0;
  int equal = 0;
  for (int i = 0; i < inside; ++i) {
    const std::uint32_t other = __shfl_sync(~0u, own, i);
    above += other > own;
    equal += other == own;
  }
  const bool last = lane < inside && above < count && count <= above + equal;
  const int source = __ffs(static_cast<int>(__ballot_sync(~0u, last))) - 1;
  const std::uint32_t place = __shfl_sync(~0u, own, source);
  const int ties = count - __shfl_sync(~0u, above, source);
  // Where all that tie are chosen, no one need count them.
  return ties == __shfl_sync(~0u, equal, source) ? Border{place - 1, 0} : Border{place, ties};
}

// The bins must be clear. Of the places between lowest and highest (none of which is 0) at least `count` ≥ 1.
__device__ __forceinline__ Border find_border(const Places& places, int count, std::uint32_t lowest,
                                              std::uint32_t highest, SelectShared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  while (true) {
    const std::uint32_t range = highest - lowest;
    if (range == 0) return {lowest, count};
    const int shift = max(32 - __clz(static_cast<int>(range)) - kDigitBits, 0);
    places.each([&](int, std::uint32_t place) {
      if (place - lowest <= range) atomicAdd(&shared.bins[(place - lowest) >> shift], 1);
    });
    __syncthreads();
    // Thread i owns two bins, the highest first.
    const int2 pair = reinterpret_cast<const int2*>(shared.bins)[kThreads - 1 - thread];
    const int own = pair.x + pair.y;
    int sum = own;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(~0u, sum, distance);
      if (lane >= distance) sum += other;
    }
    if (lane == 31) shared.of_warp[warp] = sum;
    __syncthreads();
    const int before = sum - own + __reduce_add_sync(~0u, lane < warp ? shared.of_warp[lane] : 0);
    if (before < count && before + own >= count) {
      const bool high = before + pair.y >= count;
      shared.digit = 2 * (kThreads - 1 - thread) + (high ? 1 : 0);
      shared.above = before + (high ? 0 : pair.y);
      shared.inside = high ? pair.y : pair.x;
    }
    __syncthreads();
    count -= shared.above;
    const int inside = shared.inside;
    lowest += static_cast<std::uint32_t>(shared.digit) << shift;
    if (inside == count) return {lowest - 1, 0};  // all of the bin
    highest = min(highest, lowest + ((1u << shift) - 1));
    if (inside <= kFew) {
      places.each([&](int, std::uint32_t place) {
        if (place >= lowest && place <= highest) shared.few[atomicAdd(&shared.few_count, 1)] = place;
      });
      __syncthreads();
      return border_of_few(shared, inside, count);
    }
    clear_bins(shared);  // all have read them
    __syncthreads();
  }
}

// Writes the chosen pages, ascending: each warp those of its run, once it knows how many come before.
template <bool kTies>
__device__ __forceinline__ int write_chosen(const Places& places, const Border& border, std::int32_t* chosen,
                                            SelectShared& shared) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  int above = 0;
  int ties = 0;
  places.each([&](int, std::uint32_t place) {
    above += place > border.place;
    if (kTies) ties += place == border.place;
  });
  above = __reduce_add_sync(~0u, above);
  if (kTies) ties = __reduce_add_sync(~0u, ties);
  if (lane == 0) {
    shared.held[warp] = above;
    shared.lowest[warp] = static_cast<std::uint32_t>(ties);
  }
  __syncthreads();
  above = __reduce_add_sync(~0u, lane < warp ? shared.held[lane] : 0);
  if (kTies) ties = __reduce_add_sync(~0u, lane < warp ? static_cast<int>(shared.lowest[lane]) : 0);
  const std::uint32_t lower = (1u << lane) - 1;
  places.each([&](int first, std::uint32_t place) {
    const std::uint32_t are_above = __ballot_sync(~0u, place > border.place);
    int target = above + __popc(are_above & lower);
    bool in = place > border.place;
    if (kTies) {
      const std::uint32_t are_ties = __ballot_sync(~0u, place == border.place);
      const int tie = ties + __popc(are_ties & lower);
      target += min(tie, border.ties);
      in = in || (place == border.place && tie < border.ties);
      ties += __popc(are_ties);
    }
    if (in) chosen[target] = first + lane;
    above += __popc(are_above);
  });
  return above + (kTies ? min(ties, border.ties) : 0);  // in the last warp: all
}

__global__ __launch_bounds__(kThreads) void select_kernel(const __grid_constant__ SelectArgs p) {
  __shared__ SelectShared shared;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int list = static_cast<int>(blockIdx.x);

  clear_bins(shared);
  if (!p.settled) wait_for_previous();
  const int current = max(p.positions[list / p.problem.lists()], 0) / kPageTokens;  // finished pages
  wait_for_previous();
  let_next_start();
  std::int32_t* chosen = p.pages + list * p.page_stride;
  if (thread == 0) p.page_begin[list] = static_cast<std::int32_t>(list * p.page_stride);
  if (p.budget_pages >= current) {
    for (int page = thread; page <= current; page += kThreads) chosen[page] = page;
    if (thread == 0) p.page_count[list] = current + 1;
    return;
  }

  const Places places(p.scores + list * p.score_stride, current);
  std::uint32_t lowest = ~0u;
  std::uint32_t highest = 0;
  int held = 0;
  places.each([&](int, std::uint32_t place) {
    lowest = min(lowest, place - 1);  // 0, not held, becomes the highest
    highest = max(highest, place);
    held += place != 0;
  });
  lowest = __reduce_min_sync(~0u, lowest);
  highest = __reduce_max_sync(~0u, highest);
  held = __reduce_add_sync(~0u, held);
  if (lane == 0) {
    shared.lowest[warp] = lowest;
    shared.highest[warp] = highest;
    shared.held[warp] = held;
  }
  __syncthreads();
  lowest = __reduce_min_sync(~0u, shared.lowest[lane]) + 1;
  highest = __reduce_max_sync(~0u, shared.highest[lane]);
  held = __reduce_add_sync(~0u, shared.held[lane]);
  __syncthreads();

  Border border = {0, 0};  // all that are held
  if (p.budget_pages == 0) {
    border.place = ~0u;
  } else if (p.budget_pages < held) {
    border = find_border(places, p.budget_pages, lowest, highest, shared);
  }
  const int count = border.ties == 0 ? write_chosen<false>(places, border, chosen, shared)
                                     : write_chosen<true>(places, border, chosen, shared);
  if (warp == kWarps - 1 && lane == 0) {
    chosen[count] = current;
    p.page_count[list] = count + 1;
  }
}

}  // namespace

void select_pages_on_device(const DevicePageSelectParams& p) {
  TESSERA_CHECK(p.budget_pages >= 0);
  TESSERA_CHECK(p.page_stride > std::min<std::int64_t>(p.budget_pages, p.score_stride));
  if (p.problem.sequences == 0) return;
  const SelectArgs args = {p.problem, p.budget_pages, p.positions,  p.scores,     p.score_stride,
                           p.pages,   p.page_stride,  p.page_begin, p.page_count, p.settled};
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(p.problem.all_lists()));
  shape.block = dim3(kThreads);
  shape.overlaps_previous = p.overlaps_previous;
  launch(select_kernel, shape, p.stream, args);
}

}  // namespace tessera::cuda
