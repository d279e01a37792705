// The highest pages of each list (attention/page_select_cuda.hpp): a radix select over integers in the order
// of the scores, one CTA a list. The bits that all ranks share are skipped, so that scores that lie close
// together spread over the bins of the first round.
#include <algorithm>

#include "attention/page_select_cuda.hpp"
#include "attention/ptx/grid_dependency.cuh"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kMostKept = 40 * 1024;  // ranks in shared memory; those of longer lists are read again

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
  int kept;  // ranks in shared memory
};

// Order of rank_of_score, moved to unsigned: 0 not held, 1 NaN, then −inf … inf; both zeros are equal.
__device__ __forceinline__ std::uint32_t place_of_score(float score) {
  const std::uint32_t bits = __float_as_uint(score);
  if (bits == kPageNotHeld) return 0;
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 1;
  if (bits == 0x80000000u) return 0x80000000u;
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// The ranks of one list.
struct Places {
  const float* scores;
  std::uint32_t* kept;
  int kept_count;

  __device__ __forceinline__ std::uint32_t operator[](int page) const {
    return page < kept_count ? kept[page] : place_of_score(scores[page]);
  }
};

struct SelectShared {
  int bins[kBins];
  int of_warp[kWarps];
  std::uint32_t lowest[kWarps];
  std::uint32_t highest[kWarps];
  int held[kWarps];
  int digit;
  int above;
  int inside;
};

// The lowest place that is chosen, and how many of the pages that have it are (the first ones).
struct Border {
  std::uint32_t place;
  int ties;
};

// Of `pages` places at least `count` ≥ 1 of which are not 0.
__device__ Border find_border(const Places& places, int pages, int count, std::uint32_t lowest,
                              std::uint32_t highest, SelectShared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  if (lowest == highest) return {lowest, count};
  int top = 32 - __clz(static_cast<int>(lowest ^ highest));  // bits above are the same in all
  std::uint32_t prefix = top == 32 ? 0 : highest >> top;     // of the border, as far as it is known
  while (true) {
    const int shift = max(top - kDigitBits, 0);
    const int bits = top - shift;
    for (int bin = thread; bin < kBins; bin += kThreads) shared.bins[bin] = 0;
    __syncthreads();
    for (int page = thread; page < pages; page += kThreads) {
      const std::uint32_t place = places[page];
      if (place != 0 && (top == 32 || place >> top == prefix)) {
        atomicAdd(&shared.bins[(place >> shift) & ((1u << bits) - 1)], 1);
      }
    }
    __syncthreads();
    // Thread i owns two bins, the highest first.
    const int high_bin = kBins - 1 - 2 * thread;
    const int high = shared.bins[high_bin];
    const int low = shared.bins[high_bin - 1];
    int sum = high + low;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(~0u, sum, distance);
      if (lane >= distance) sum += other;
    }
    if (lane == 31) shared.of_warp[warp] = sum;
    __syncthreads();
    if (warp == 0) {
      int total = shared.of_warp[lane];
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(~0u, total, distance);
        if (lane >= distance) total += other;
      }
      shared.of_warp[lane] = total;
    }
    __syncthreads();
    const int before = sum - high - low + (warp == 0 ? 0 : shared.of_warp[warp - 1]);
    if (before < count && before + high >= count) {
      shared.digit = high_bin;
      shared.above = before;
      shared.inside = high;
    } else if (before + high < count && before + high + low >= count) {
      shared.digit = high_bin - 1;
      shared.above = before + high;
      shared.inside = low;
    }
    __syncthreads();
    count -= shared.above;
    prefix = prefix << bits | static_cast<std::uint32_t>(shared.digit);
    if (shift == 0) return {prefix, count};
    // All of the bin: every place from its lower edge on is chosen, and none of them shares a tie.
    if (shared.inside == count) return {(prefix << shift) - 1, 0};
    top = shift;
    __syncthreads();
  }
}

__global__ __launch_bounds__(kThreads) void select_kernel(const __grid_constant__ SelectArgs p) {
  extern __shared__ __align__(16) std::uint32_t kept[];
  __shared__ SelectShared shared;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int list = static_cast<int>(blockIdx.x);

  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const int current = max(p.positions[list / p.problem.lists()], 0) / kPageTokens;  // finished pages
  std::int32_t* chosen = p.pages + list * p.page_stride;
  if (thread == 0) p.page_begin[list] = static_cast<std::int32_t>(list * p.page_stride);
  if (p.budget_pages >= current) {
    for (int page = thread; page <= current; page += kThreads) chosen[page] = page;
    if (thread == 0) p.page_count[list] = current + 1;
    return;
  }

  const float* scores = p.scores + list * p.score_stride;
  const Places places = {scores, kept, min(current, p.kept)};
  std::uint32_t lowest = ~0u;
  std::uint32_t highest = 0;
  int held = 0;
#pragma unroll 4
  for (int page = thread; page < current; page += kThreads) {
    const std::uint32_t place = place_of_score(scores[page]);
    if (page < places.kept_count) kept[page] = place;
    if (place == 0) continue;
    lowest = min(lowest, place);
    highest = max(highest, place);
    ++held;
  }
  lowest = __reduce_min_sync(~0u, lowest);
  highest = __reduce_max_sync(~0u, highest);
  held = __reduce_add_sync(~0u, held);
  if (lane == 0) {
    shared.lowest[warp] = lowest;
    shared.highest[warp] = highest;
    shared.held[warp] = held;
  }
  __syncthreads();
  lowest = __reduce_min_sync(~0u, shared.lowest[lane]);
  highest = __reduce_max_sync(~0u, shared.highest[lane]);
  held = __reduce_add_sync(~0u, shared.held[lane]);
  __syncthreads();

  Border border = {0, 0};  // all that are held
  if (p.budget_pages < held) {
    border = p.budget_pages == 0 ? Border{~0u, 0}
                                 : find_border(places, current, p.budget_pages, lowest, highest, shared);
  }

  // Each warp writes the chosen of its own run of pages: first how many those of the warps before it are.
  const int run = (current + kThreads - 1) / kThreads * 32;
  const int run_begin = min(current, warp * run);
  const int run_end = min(current, run_begin + run);
  int above = 0;
  int ties = 0;
  for (int page = run_begin + lane; page < run_end; page += 32) {
    const std::uint32_t place = places[page];
    above += place > border.place;
    ties += place == border.place;
  }
  above = __reduce_add_sync(~0u, above);
  ties = __reduce_add_sync(~0u, ties);
  __syncthreads();
  if (lane == 0) {
    shared.held[warp] = above;
    shared.of_warp[warp] = ties;
  }
  __syncthreads();
  above = __reduce_add_sync(~0u, lane < warp ? shared.held[lane] : 0);
  ties = __reduce_add_sync(~0u, lane < warp ? shared.of_warp[lane] : 0);
  for (int first = run_begin; first < run_end; first += 32) {
    const std::uint32_t place = first + lane < run_end ? places[first + lane] : 0;
    const bool in = first + lane < run_end;
    const std::uint32_t are_above = __ballot_sync(~0u, in && place > border.place);
    const std::uint32_t are_ties = __ballot_sync(~0u, in && place == border.place);
    const std::uint32_t lower = (1u << lane) - 1;
    const int tie = ties + __popc(are_ties & lower);
    const int target = above + __popc(are_above & lower) + min(tie, border.ties);
    if ((are_above >> lane & 1) != 0 || ((are_ties >> lane & 1) != 0 && tie < border.ties)) {
      chosen[target] = first + lane;
    }
    above += __popc(are_above);
    ties += __popc(are_ties);
  }
  if (warp == kWarps - 1 && lane == 0) {
    const int count = above + min(ties, border.ties);
    chosen[count] = current;
    p.page_count[list] = count + 1;
  }
}

}  // namespace

void select_pages_on_device(const DevicePageSelectParams& p) {
  TESSERA_CHECK(p.budget_pages >= 0);
  TESSERA_CHECK(p.page_stride > std::min<std::int64_t>(p.budget_pages, p.score_stride));
  if (p.problem.sequences == 0) return;
  SelectArgs args = {p.problem, p.budget_pages, p.positions,  p.scores,     p.score_stride,
                     p.pages,   p.page_stride,  p.page_begin, p.page_count, 0};
  args.kept = static_cast<int>(std::min<std::int64_t>(p.score_stride, kMostKept));
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(p.problem.all_lists()));
  shape.block = dim3(kThreads);
  shape.shared_bytes = static_cast<std::size_t>(args.kept) * sizeof(std::uint32_t);
  shape.overlaps_previous = p.overlaps_previous;
  launch(select_kernel, shape, p.stream, args);
}

}  // namespace tessera::cuda
