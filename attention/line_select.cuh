// The units with the highest sums of a list of Fixed, exactly, by a cluster of CTAs: each holds a run of the
// list in registers, histograms are added over distributed shared memory, and the bin in which the last kept
// unit lies is divided again until it is kept whole or holds one value. The first histogram has 32 bins an
// octave, since sums of probabilities spread over many; the others are linear. How many units cover a share
// of the whole is found the same way, from what each bin adds up to.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "attention/fixed_point.hpp"

namespace tessera::cuda {

inline constexpr int kLineThreads = 1024;
inline constexpr int kLineWarps = kLineThreads / 32;
inline constexpr int kLineCtas = 8;  // of a cluster
inline constexpr int kLineKept =
    16;  // units that a thread keeps: 131,072 of a list; longer ones are read again
inline constexpr int kLineDigitBits = 11;
inline constexpr int kLineBins = 1 << kLineDigitBits;

struct LineList {
  const Fixed* sums;  // (units), none below 0
  std::int32_t* chosen;
  int units;
  int forced;           // the first ones
  int keep;             // forced ≤ keep ≤ units
  Fixed coverage;       // as in SlashSelectProblem
  std::int32_t* count;  // kept
};

struct LineShared {
  int bins[2][kLineBins];
  unsigned long long totals[kLineBins];
  unsigned long long total_of_warp[kLineWarps];
  unsigned long long total_above;
  int of_warp[kLineWarps];
  int ties_of_warp[kLineWarps];
  int above_of_cta;
  int ties_of_cta;
  int digit;
  int above;
  int inside;
};

// The units of one warp of the cluster: neighbours, 32 at a time.
class LineRun {
 public:
  __device__ __forceinline__ LineRun(const LineList& list, int warp_of_cluster) : list_(list) {
    const int run = (list.units + kLineThreads * kLineCtas - 1) / (kLineThreads * kLineCtas) * 32;
    begin_ = min(list.units, warp_of_cluster * run);
    end_ = min(list.units, begin_ + run);
    all_kept_ = run <= kLineKept * 32;
    if (!all_kept_) return;
    const int unit = begin_ + static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int i = 0; i < kLineKept; ++i) kept_[i] = unit + i * 32 < end_ ? list.sums[unit + i * 32] : -1;
  }
  // visit(first unit, sum of unit first + lane; −1 past the end).
  template <class Visit>
  __device__ __forceinline__ void each(const Visit& visit) const {
    if (all_kept_) {
#pragma unroll
      for (int i = 0; i < kLineKept; ++i) visit(begin_ + i * 32, kept_[i]);
      return;
    }
#pragma unroll 1
    for (int first = begin_; first < end_; first += 32) {
      const int unit = first + static_cast<int>(threadIdx.x % 32);
      visit(first, unit < end_ ? list_.sums[unit] : Fixed{-1});
    }
  }

 private:
  const LineList& list_;
  int begin_;
  int end_;
  Fixed kept_[kLineKept];
  bool all_kept_;
};

// Ascends with the sum: itself below 32, then 32 bins an octave.
__device__ __forceinline__ int octave_bin(Fixed sum) {
  const int bits = 63 - __clzll(sum | 1);
  return bits < 5 ? static_cast<int>(sum) : (bits - 4) * 32 + static_cast<int>(sum >> (bits - 5) & 31);
}
__device__ __forceinline__ Fixed octave_bin_begin(int bin) {
  return bin < 32 ? bin : static_cast<Fixed>(32 + bin % 32) << (bin / 32 - 1);
}

// What lies in a bin: sums lowest … highest.
struct LineRange {
  Fixed lowest = 0;
  Fixed highest = INT64_MAX;
  int shift = -1;  // of the bins that it is divided into; −1: by octaves

  __device__ __forceinline__ bool holds(Fixed sum) const { return sum >= lowest && sum <= highest; }
  __device__ __forceinline__ int bin_of(Fixed sum) const {
    return shift < 0 ? octave_bin(sum) : static_cast<int>((sum - lowest) >> shift);
  }
  __device__ __forceinline__ void narrow(int bin) {
    if (shift < 0) {
      lowest = octave_bin_begin(bin);
      highest = octave_bin_begin(bin + 1) - 1;
    } else {
      lowest += static_cast<Fixed>(bin) << shift;
      highest = min(highest, lowest + ((Fixed{1} << shift) - 1));
    }
    shift = max(64 - __clzll(highest - lowest) - kLineDigitBits, 0);
  }
};

// Sums over the lanes below and this one.
template <typename Number>
__device__ __forceinline__ Number scan_warp(Number sum) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const Number other = __shfl_up_sync(~0u, sum, distance);
    if (static_cast<int>(threadIdx.x) % 32 >= distance) sum += other;
  }
  return sum;
}

// Kept are the forced units, those above `sum`, and the first `ties` of those that equal it.
struct LineBorder {
  Fixed sum;
  int ties;
};

// Of the units that are not forced at least `count` ≥ 1.
__device__ __forceinline__ LineBorder find_line_border(const LineRun& run, int forced, int count,
                                                       LineShared& shared) {
  namespace cg = cooperative_groups;
  const cg::cluster_group cluster = cg::this_cluster();
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  LineRange range;
  for (int pass = 0;; ++pass) {
    int* const bins = shared.bins[pass % 2];
    int* const other_bins = shared.bins[(pass + 1) % 2];
    // Clear here: before the first pass, or behind the barrier of the pass before.
    run.each([&](int first, Fixed sum) {
      if (range.holds(sum) && first + lane >= forced) atomicAdd(bins + range.bin_of(sum), 1);
    });
    cluster.sync();
    reinterpret_cast<int2*>(other_bins)[thread] = make_int2(0, 0);  // all have read them: the last pass's
    // Thread i owns two bins, the highest first.
    int2 pair = make_int2(0, 0);
#pragma unroll
    for (int rank = 0; rank < kLineCtas; ++rank) {
      const int* remote = cluster.map_shared_rank(bins, rank);
      const int2 part = reinterpret_cast<const int2*>(remote)[kLineThreads - 1 - thread];
      pair.x += part.x;
      pair.y += part.y;
    }
    const int own = pair.x + pair.y;
    const int sum = scan_warp(own);
    if (lane == 31) shared.of_warp[warp] = sum;
    __syncthreads();
    const int before = sum - own + __reduce_add_sync(~0u, lane < warp ? shared.of_warp[lane] : 0);
    if (before < count && before + own >= count) {
      const bool high = before + pair.y >= count;
      shared.digit = 2 * (kLineThreads - 1 - thread) + (high ? 1 : 0);
      shared.above = before + (high ? 0 : pair.y);
      shared.inside = high ? pair.y : pair.x;
    }
    __syncthreads();
    const int inside = shared.inside;
    count -= shared.above;
    range.narrow(shared.digit);
    if (inside == count) return {range.lowest - 1, 0};  // all of the bin
    if (range.lowest == range.highest) return {range.lowest, count};
  }
}

// 1 + the number of sums from the highest on, forced or not, whose running total is at most `limit` ≥ 0; no
// more than there are units.
__device__ __forceinline__ int units_to_cover(const LineRun& run, int units, Fixed limit,
                                              LineShared& shared) {
  namespace cg = cooperative_groups;
  const cg::cluster_group cluster = cg::this_cluster();
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  auto left = static_cast<unsigned long long>(limit);
  int counted = 0;
  LineRange range;
  while (true) {
    reinterpret_cast<int2*>(shared.bins[0])[thread] = make_int2(0, 0);
    shared.totals[2 * thread] = shared.totals[2 * thread + 1] = 0;
    if (thread == 0) shared.digit = -1;
    __syncthreads();
    run.each([&](int, Fixed sum) {
      if (!range.holds(sum)) return;
      const int bin = range.bin_of(sum);
      atomicAdd(shared.bins[0] + bin, 1);
      if (sum != 0) atomicAdd(shared.totals + bin, static_cast<unsigned long long>(sum));
    });
    cluster.sync();
    int2 counts = make_int2(0, 0);
    unsigned long long low = 0;
    unsigned long long high = 0;
    for (int rank = 0; rank < kLineCtas; ++rank) {
      const int pair = kLineThreads - 1 - thread;  // the highest first
      const int2 part = reinterpret_cast<const int2*>(cluster.map_shared_rank(shared.bins[0], rank))[pair];
      const unsigned long long* totals = cluster.map_shared_rank(shared.totals, rank);
      counts.x += part.x;
      counts.y += part.y;
      low += totals[2 * pair];
      high += totals[2 * pair + 1];
    }
    const unsigned long long sum = scan_warp(low + high);
    const int count = scan_warp(counts.x + counts.y);
    if (lane == 31) {
      shared.total_of_warp[warp] = sum;
      shared.of_warp[warp] = count;
    }
    __syncthreads();
    unsigned long long before = sum - low - high;
    for (int i = 0; i < warp; ++i) before += shared.total_of_warp[i];
    int above = count - counts.x - counts.y;
    above += __reduce_add_sync(~0u, lane < warp ? shared.of_warp[lane] : 0);
    if (before <= left && before + low + high > left) {
      const bool in_high = before + high > left;
      shared.digit = 2 * (kLineThreads - 1 - thread) + (in_high ? 1 : 0);
      shared.total_above = before + (in_high ? 0 : high);
      shared.above = above + (in_high ? 0 : counts.y);
      shared.inside = in_high ? counts.y : counts.x;
    }
    cluster.sync();                      // and all have read the bins
    if (shared.digit < 0) return units;  // all of them stay within the limit
    left -= shared.total_above;
    counted += shared.above;
    const int inside = shared.inside;
    range.narrow(shared.digit);
    __syncthreads();
    if (inside == 1) return counted + 1;
    if (range.lowest == range.highest) {
      return counted + 1 + static_cast<int>(left / static_cast<unsigned long long>(range.lowest));
    }
  }
}

// By all CTAs of a cluster.
template <bool kCoverage>
__device__ __forceinline__ void choose_lines(const LineList& list, LineShared& shared) {
  namespace cg = cooperative_groups;
  const cg::cluster_group cluster = cg::this_cluster();
  const int rank = static_cast<int>(cluster.block_rank());
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const auto keep_all = [&] {
    for (int i = rank * kLineThreads + thread; i < list.units; i += kLineCtas * kLineThreads)
      list.chosen[i] = i;
  };
  int keep = list.keep;
  if (!kCoverage && thread == 0 && rank == 0) *list.count = keep;
  if (!kCoverage && keep == list.units) return keep_all();
  const LineRun run(list, rank * kLineWarps + warp);
  if constexpr (kCoverage) {
    keep = max(keep, units_to_cover(run, list.units, list.coverage, shared));
    if (thread == 0 && rank == 0) *list.count = keep;
    if (keep == list.units) return keep_all();  // all CTAs alike, and none reads another any more
  }
  LineBorder border = {INT64_MAX, 0};  // forced ones alone
  if (keep > list.forced) {
    reinterpret_cast<int2*>(shared.bins[0])[thread] = make_int2(0, 0);
    __syncthreads();
    border = find_line_border(run, list.forced, keep - list.forced, shared);
  }
  const auto is_above = [&](int unit, Fixed sum) {
    return sum >= 0 && (unit < list.forced || sum > border.sum);
  };
  const auto is_tie = [&](int unit, Fixed sum) { return sum == border.sum && unit >= list.forced; };
  int above = 0;
  int ties = 0;
  run.each([&](int first, Fixed sum) {
    above += is_above(first + lane, sum);
    ties += is_tie(first + lane, sum);
  });
  above = __reduce_add_sync(~0u, above);
  ties = __reduce_add_sync(~0u, ties);
  __syncthreads();  // of_warp was read
  if (lane == 0) {
    shared.of_warp[warp] = above;
    shared.ties_of_warp[warp] = ties;
  }
  __syncthreads();
  above = __reduce_add_sync(~0u, shared.of_warp[lane]);
  ties = __reduce_add_sync(~0u, shared.ties_of_warp[lane]);
  if (thread == 0) {
    shared.above_of_cta = above;
    shared.ties_of_cta = ties;
  }
  cluster.sync();
  above = lane < rank ? *cluster.map_shared_rank(&shared.above_of_cta, lane % kLineCtas) : 0;
  ties = lane < rank ? *cluster.map_shared_rank(&shared.ties_of_cta, lane % kLineCtas) : 0;
  above = __reduce_add_sync(~0u, above + (lane < warp ? shared.of_warp[lane] : 0));
  ties = __reduce_add_sync(~0u, ties + (lane < warp ? shared.ties_of_warp[lane] : 0));
  const unsigned lower = (1u << lane) - 1;
  run.each([&](int first, Fixed sum) {
    const bool over = is_above(first + lane, sum);
    const bool tied = is_tie(first + lane, sum);
    const unsigned are_over = __ballot_sync(~0u, over);
    const unsigned are_tied = __ballot_sync(~0u, tied);
    const int tie = ties + __popc(are_tied & lower);
    const int target = above + __popc(are_over & lower) + min(tie, border.ties);
    if (over || (tied && tie < border.ties)) list.chosen[target] = first + lane;
    above += __popc(are_over);
    ties += __popc(are_tied);
  });
  cluster.sync();  // others may still read this CTA's counts
}

}  // namespace tessera::cuda
