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

// Little shared memory and few registers, so that these CTAs are resident while the scores are still made.
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kKept =
    16;  // places a thread keeps in registers: 8,192 pages; those of longer lists are read again
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kBinsOfThread = kBins / kThreads;

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
  bool all_kept;

  __device__ __forceinline__ Places(const float* list_scores, int pages) : scores(list_scores) {
    const int run = (pages + kThreads - 1) / kThreads * 32;
    begin = min(pages, static_cast<int>(threadIdx.x) / 32 * run);
    end = min(pages, begin + run);
    all_kept = run <= kKept * 32;
    if (!all_kept) return;
    read(begin, kept);
  }
  // visit(first page, place of page first + lane; 0 past the end), 32 pages at a time, ascending.
  template <class Visit>
  __device__ __forceinline__ void each(const Visit& visit) const {
    if (all_kept) {
#pragma unroll
      for (int i = 0; i < kKept; ++i) {
        if (begin + i * 32 < end) visit(begin + i * 32, kept[i]);
      }
      return;
    }
    constexpr int kAtOnce = 4;
    for (int first = begin; first < end; first += kAtOnce * 32) {
      std::uint32_t places[kAtOnce];
      read(first, places);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i * 32 < end) visit(first + i * 32, places[i]);
      }
    }
  }

 private:
  // All loads are under way before the first is used.
  template <int kCount>
  __device__ __forceinline__ void read(int first, std::uint32_t (&places)[kCount]) const {
    float loaded[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int page = first + i * 32 + static_cast<int>(threadIdx.x % 32);
      loaded[i] = scores[max(min(page, end - 1), 0)];
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int page = first + i * 32 + static_cast<int>(threadIdx.x % 32);
      places[i] = page < end ? place_of_score(loaded[i]) : 0;
    }
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

// Of places at least `count` ≥ 1 of which are not 0.
__device__ __forceinline__ Border find_border(const Places& places, int count, std::uint32_t lowest,
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
    places.each([&](int, std::uint32_t place) {
      if (place != 0 && (top == 32 || place >> top == prefix)) {
        atomicAdd(&shared.bins[(place >> shift) & ((1u << bits) - 1)], 1);
      }
    });
    __syncthreads();
    // Thread i owns kBinsOfThread bins, the highest first.
    const int high_bin = kBins - 1 - kBinsOfThread * thread;
    int inside[kBinsOfThread];
    int own = 0;
#pragma unroll
    for (int i = 0; i < kBinsOfThread; ++i) own += inside[i] = shared.bins[high_bin - i];
    int sum = own;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(~0u, sum, distance);
      if (lane >= distance) sum += other;
    }
    if (lane == 31) shared.of_warp[warp] = sum;
    __syncthreads();
    int before = sum - own;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) before += w < warp ? shared.of_warp[w] : 0;
#pragma unroll
    for (int i = 0; i < kBinsOfThread; ++i) {
      if (before < count && before + inside[i] >= count) {
        shared.digit = high_bin - i;
        shared.above = before;
        shared.inside = inside[i];
      }
      before += inside[i];
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
  __shared__ SelectShared shared;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int list = static_cast<int>(blockIdx.x);

  if (!p.settled) ptx::wait_for_previous_kernel();
  const int current = max(p.positions[list / p.problem.lists()], 0) / kPageTokens;  // finished pages
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
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
    lowest = min(lowest, place != 0 ? place : ~0u);
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
  lowest = __reduce_min_sync(~0u, shared.lowest[lane % kWarps]);
  highest = __reduce_max_sync(~0u, shared.highest[lane % kWarps]);
  held = __reduce_add_sync(~0u, lane < kWarps ? shared.held[lane] : 0);
  __syncthreads();

  Border border = {0, 0};  // all that are held
  if (p.budget_pages < held) {
    border =
        p.budget_pages == 0 ? Border{~0u, 0} : find_border(places, p.budget_pages, lowest, highest, shared);
  }

  // Each warp writes the chosen of its own run: first how many those of the warps before it are.
  int above = 0;
  int ties = 0;
  places.each([&](int, std::uint32_t place) {
    above += place > border.place;
    ties += place != 0 && place == border.place;
  });
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
  places.each([&](int first, std::uint32_t place) {
    const std::uint32_t are_above = __ballot_sync(~0u, place > border.place);
    const std::uint32_t are_ties = __ballot_sync(~0u, place != 0 && place == border.place);
    const std::uint32_t lower = (1u << lane) - 1;
    const int tie = ties + __popc(are_ties & lower);
    const int target = above + __popc(are_above & lower) + min(tie, border.ties);
    if ((are_above >> lane & 1) != 0 || ((are_ties >> lane & 1) != 0 && tie < border.ties)) {
      chosen[target] = first + lane;
    }
    above += __popc(are_above);
    ties += __popc(are_ties);
  });
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
  const SelectArgs args = {p.problem, p.budget_pages, p.positions,  p.scores,     p.score_stride,
                           p.pages,   p.page_stride,  p.page_begin, p.page_count, p.settled};
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(p.problem.all_lists()));
  shape.block = dim3(kThreads);
  shape.overlaps_previous = p.overlaps_previous;
  launch(select_kernel, shape, p.stream, args);
}

}  // namespace tessera::cuda
