// Choice and lists of vertical_slash on the GPU (attention/slash_select_cuda.hpp): a cluster for each list of
// columns and of diagonals, a CTA for the pattern that a list's diagonals give every query block, and a warp
// for each query block.
#include "attention/slash_select_cuda.hpp"

#include <algorithm>

#include "attention/line_select.cuh"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {
namespace {

constexpr int kPatternThreads = 1024;
constexpr int kRowThreads = 256;
constexpr int kPagesABlock = kBlockTokens / kPageTokens;
static_assert(kBlockTokens == 64 && kPageTokens == 16 && kQueryBlockRows == kBlockTokens);

// What the kernels hand on: of each list the blocks that its diagonals give a query block, as (blocks back,
// pages), nearest first; of each query block how many of them exist, and where its entries begin in the
// list's.
struct Patterns {
  std::uint32_t* near;   // (lists, blocks): back · 16 + pages
  std::int32_t* counts;  // (lists, blocks)
  std::int64_t* begins;  // (lists, blocks)
  std::int64_t* totals;  // (lists)
};

// Grid (CTAs of a cluster, lists of columns and then of diagonals).
template <bool kCoverage>
__global__ void __launch_bounds__(kLineThreads, 1) line_kernel(const SlashSelectParams p) {
  __shared__ LineShared shared;
  const int lists = p.problem.lists;
  const int index = static_cast<int>(blockIdx.y);
  const bool is_column = index < lists;
  const std::int64_t list = is_column ? index : index - lists;
  const std::int64_t kept = is_column ? p.problem.kept_columns() : p.problem.kept_diagonals();
  const std::int64_t forced =
      is_column ? SlashSelectProblem::kForcedColumns : SlashSelectProblem::kForcedDiagonals;
  LineList line;
  line.sums = (is_column ? p.column_sums : p.diagonal_sums) + list * p.problem.tokens;
  line.chosen = (is_column ? p.columns : p.diagonals) + list * kept;
  line.units = static_cast<int>(p.problem.tokens);
  line.forced = static_cast<int>(min(forced, p.problem.tokens));
  const std::int64_t budget = is_column ? p.problem.columns : p.problem.diagonals;
  line.keep = static_cast<int>(min(max(budget, forced), p.problem.tokens));
  line.coverage = p.problem.coverage;
  line.count = p.counts + index;
  choose_lines<kCoverage>(line, shared);
}

// Exclusive sums over the CTA; total: of all.
template <typename Number>
__device__ __forceinline__ Number scan(Number own, Number (&of_warp)[kPatternThreads / 32], Number& total) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  Number sum = own;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const Number other = __shfl_up_sync(~0u, sum, distance);
    if (lane >= distance) sum += other;
  }
  __syncthreads();
  if (lane == 31) of_warp[warp] = sum;
  __syncthreads();
  Number before = sum - own;
  total = 0;
  for (int i = 0; i < kPatternThreads / 32; ++i) {
    if (i < warp) before += of_warp[i];
    total += of_warp[i];
  }
  return before;
}

// One CTA a list. Shared memory: four bits a block, of those that lie 0, 1 … back.
__global__ void __launch_bounds__(kPatternThreads)
    pattern_kernel(const SlashSelectParams p, const Patterns out) {
  extern __shared__ std::uint32_t masks[];
  __shared__ std::int64_t of_warp[kPatternThreads / 32];
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t list = blockIdx.x;
  const int blocks = static_cast<int>(p.problem.query_blocks());
  const int words = (blocks + 2 + 7) / 8;
  for (int i = thread; i < words; i += kPatternThreads) masks[i] = 0;
  __syncthreads();
  const int kept = p.counts[p.problem.lists + list];
  const std::int32_t* offsets = p.diagonals + list * p.problem.kept_diagonals();
  for (int i = thread; i < kept; i += kPatternThreads) {
    // q0 − offset and q0 + 63 − offset in pages from q0's block, rounded down; both may be negative.
    const int offset = offsets[i];
    const int last = (kBlockTokens - 1 - offset) >> 4;
    for (int page = -((offset + kPageTokens - 1) >> 4); page <= last; ++page) {
      const int back = page >= 0 ? 0 : (-page + kPagesABlock - 1) / kPagesABlock;
      atomicOr(masks + back / 8, 1u << (back % 8 * 4 + page + back * kPagesABlock));
    }
  }
  __syncthreads();
  const auto pages_of = [&](int back) { return masks[back / 8] >> (back % 8 * 4) & 15u; };
  const int run = (blocks + kPatternThreads - 1) / kPatternThreads;
  const int begin = min(blocks, thread * run);
  const int end = min(blocks, begin + run);
  std::int64_t found = 0;
  for (int back = begin; back < end; ++back) found += pages_of(back) != 0;
  std::int64_t total = 0;
  const std::int64_t nearer = scan(found, of_warp, total);
  std::int64_t entries = 0;
  std::int64_t count = nearer;
  for (int back = begin; back < end; ++back) {
    const unsigned pages = pages_of(back);
    if (pages != 0) out.near[list * blocks + count++] = static_cast<std::uint32_t>(back) << 4 | pages;
    out.counts[list * blocks + back] = static_cast<std::int32_t>(count);
    entries += count;
  }
  std::int64_t place = scan(entries, of_warp, total);
  if (thread == 0) out.totals[list] = total;
  count = nearer;
  for (int row = begin; row < end; ++row) {
    out.begins[list * blocks + row] = place;
    count += pages_of(row) != 0;
    place += count;
  }
}

// Grid (query blocks / warps, lists).
__global__ void __launch_bounds__(kRowThreads) row_kernel(const SlashSelectParams p, const Patterns in) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int blocks = static_cast<int>(p.problem.query_blocks());
  const int row = static_cast<int>(blockIdx.x) * (kRowThreads / 32) + static_cast<int>(threadIdx.x) / 32;
  if (row >= blocks) return;
  const int list = static_cast<int>(blockIdx.y);
  std::int64_t begin = 0;
  for (int i = lane; i < list; i += 32) begin += in.totals[i];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) begin += __shfl_xor_sync(~0u, begin, distance);
  const std::int64_t place = static_cast<std::int64_t>(list) * blocks + row;
  if (lane == 0) {
    if (row == 0) p.row_begin[place] = begin;
    if (list == p.problem.lists - 1 && row == blocks - 1) p.row_begin[place + 1] = begin + in.totals[list];
  }
  begin += in.begins[place];
  if (lane == 0 && row != 0) p.row_begin[place] = begin;
  const int count = in.counts[place];
  const std::uint32_t* near = in.near + static_cast<std::int64_t>(list) * blocks;
  // Offset 0 is forced, so that the query block itself is always listed; of the last one fewer pages may
  // exist.
  const std::int64_t last = min(p.problem.tokens, (row + std::int64_t{1}) * kQueryBlockRows) - 1;
  const auto pages =
      static_cast<unsigned>(last / kPageTokens - static_cast<std::int64_t>(row) * kPagesABlock + 1);
  for (int i = lane; i < count; i += 32) {
    const std::uint32_t entry = near[count - 1 - i];
    const std::uint32_t back = entry >> 4;
    const std::uint32_t mask = back == 0 ? entry & ((1u << pages) - 1) : entry & 15u;
    p.entries[begin + i].bits = (static_cast<std::uint32_t>(row) - back) << 4 | mask;
  }
}

std::size_t blocks_of(const SlashSelectProblem& problem) {
  return static_cast<std::size_t>(problem.lists) * static_cast<std::size_t>(problem.query_blocks());
}

}  // namespace

std::int64_t slash_list_entries(const SlashSelectProblem& problem) {
  // A diagonal covers pages of two neighbouring blocks at most, and those that are forced share theirs.
  const std::int64_t most =
      2 * (problem.kept_diagonals() - std::min(problem.tokens, SlashSelectProblem::kForcedDiagonals)) + 2;
  const std::int64_t rows = problem.query_blocks();
  const std::int64_t growing = std::min(rows, most);
  return problem.lists * (growing * (growing + 1) / 2 + (rows - growing) * most);
}

std::size_t slash_select_workspace(const SlashSelectProblem& problem) {
  return blocks_of(problem) * 16 + static_cast<std::size_t>(problem.lists) * sizeof(std::int64_t);
}

void select_slashes_on_device(const SlashSelectParams& p) {
  constexpr std::int64_t kMostTokens = 1 << 22;
  const SlashSelectProblem& problem = p.problem;
  TESSERA_CHECK(problem.tokens >= 0 && problem.tokens <= kMostTokens && problem.lists >= 0);
  if (problem.tokens == 0 || problem.lists == 0) return;
  Patterns patterns;
  patterns.begins = static_cast<std::int64_t*>(p.workspace);
  patterns.totals = patterns.begins + blocks_of(problem);
  patterns.near = reinterpret_cast<std::uint32_t*>(patterns.totals + problem.lists);
  patterns.counts = reinterpret_cast<std::int32_t*>(patterns.near + blocks_of(problem));
  const auto lists = static_cast<unsigned>(problem.lists);
  const std::int64_t rows = problem.query_blocks();
  LaunchShape lines;
  lines.grid = dim3(kLineCtas, 2 * lists);
  lines.block = kLineThreads;
  lines.cluster = kLineCtas;
  if (problem.coverage >= 0) {
    launch(line_kernel<true>, lines, p.stream, p);
  } else {
    launch(line_kernel<false>, lines, p.stream, p);
  }
  launch(pattern_kernel,
         {.grid = dim3(lists),
          .block = kPatternThreads,
          .shared_bytes = static_cast<std::size_t>((rows + 2 + 7) / 8) * sizeof(std::uint32_t)},
         p.stream, p, patterns);
  launch(row_kernel,
         {.grid = dim3(static_cast<unsigned>(ceil_div(rows, kRowThreads / 32)), lists), .block = kRowThreads},
         p.stream, p, patterns);
}

}  // namespace tessera::cuda
