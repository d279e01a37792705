// Pairs of lists on the GPU (attention/pair_counts_cuda.hpp): how many columns lie in each page, then a warp
// a query block, as row_pairs in selection.cpp counts it.
#include "attention/pair_counts_cuda.hpp"

#include <algorithm>

#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/cuda_memory.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPagesABlock = kBlockTokens / kPageTokens;

struct CountArguments {
  const std::int64_t* row_begin;
  const BlockEntry* entries;
  const std::int32_t* columns;
  const std::int32_t* column_counts;
  std::int32_t* columns_of_page;  // (lists, pages)
  std::uint64_t* visible;
  std::uint64_t* executed;
  std::int64_t column_stride;
  int tokens;
  int rows;   // query blocks
  int pages;  // that the tokens have
  int first_executed;
};

// Grid (columns / threads, lists).
__global__ void __launch_bounds__(kThreads) page_kernel(const CountArguments p) {
  const int index = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const std::int64_t list = blockIdx.y;
  if (index >= p.column_counts[list]) return;
  const int page = p.columns[list * p.column_stride + index] / kPageTokens;
  atomicAdd(p.columns_of_page + list * p.pages + page, 1);
}

// Pairs of queries first … last with the keys of the page that begins at `start`, under the causal mask.
__device__ __forceinline__ unsigned page_pairs(int start, int first, int last) {
  if (start + kPageTokens - 1 <= first) return static_cast<unsigned>((last - first + 1) * kPageTokens);
  unsigned pairs = 0;
  for (int key = start; key < start + kPageTokens; ++key)
    pairs += static_cast<unsigned>(max(0, last - max(key, first) + 1));
  return pairs;
}

// How many of `count` ascending columns are before `end`.
__device__ __forceinline__ int columns_before(const std::int32_t* columns, int count, int end) {
  int low = 0;
  while (low < count) {
    const int middle = low + (count - low) / 2;
    if (columns[middle] < end) {
      low = middle + 1;
    } else {
      count = middle;
    }
  }
  return low;
}

struct RowPairs {
  unsigned visible;
  unsigned executed;
};

// By a warp: the sums of all lanes, in each.
__device__ __forceinline__ RowPairs row_pairs(const CountArguments& p, std::int64_t list, int row) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first = row * kQueryBlockRows;
  const int last = min(p.tokens, first + kQueryBlockRows) - 1;
  const std::int64_t place = list * p.rows + row;
  const BlockEntry* const entries = p.entries + p.row_begin[place];
  const int count = static_cast<int>(p.row_begin[place + 1] - p.row_begin[place]);
  const bool has_columns = p.columns != nullptr;
  const std::int32_t* const columns_of_page = p.columns_of_page + list * p.pages;
  unsigned visible = 0;
  int pages = 0;
  int held = 0;  // columns below the row in its pages
  for (int i = lane; i < count; i += 32) {
    const unsigned entry = entries[i].bits;
    for (unsigned mask = entry & 15U; mask != 0; mask &= mask - 1) {
      const int page = static_cast<int>(entry >> 4) * kPagesABlock + __ffs(static_cast<int>(mask)) - 1;
      visible += page_pairs(page * kPageTokens, first, last);
      if (has_columns && page * kPageTokens < first) held += columns_of_page[page];
      ++pages;
    }
  }
  int below = 0;
  int beside = 0;  // columns among the row's own tokens in no page
  if (has_columns) {
    const std::int32_t* const columns = p.columns + list * p.column_stride;
    const int all = p.column_counts[list];
    below = columns_before(columns, all, first);
    const unsigned newest = count > 0 ? entries[count - 1].bits : 0U;
    const unsigned own = static_cast<int>(newest >> 4) == row ? newest & 15U : 0U;
    for (int i = below + lane; i < all && columns[i] <= last; i += 32) {
      const int column = columns[i];
      if ((own >> (column - first) / kPageTokens & 1U) != 0) continue;
      ++beside;
      visible += static_cast<unsigned>(last - column + 1);
    }
  }
  visible = __reduce_add_sync(~0U, visible);
  pages = __reduce_add_sync(~0U, pages);
  beside = __reduce_add_sync(~0U, beside);
  const int single_below = below - __reduce_add_sync(~0U, held);
  return {visible + static_cast<unsigned>(single_below * (last - first + 1)),
          static_cast<unsigned>((pages * kPageTokens + single_below + beside) * kQueryBlockRows)};
}

// Grid (query blocks / warps, lists).
__global__ void __launch_bounds__(kThreads) row_kernel(const CountArguments p) {
  __shared__ unsigned long long sums[2];
  const int thread = static_cast<int>(threadIdx.x);
  const int row = static_cast<int>(blockIdx.x) * kWarps + thread / 32;
  const std::int64_t list = blockIdx.y;
  if (thread < 2) sums[thread] = 0;
  __syncthreads();
  if (row < p.rows) {
    const RowPairs pairs = row_pairs(p, list, row);
    if (thread % 32 == 0) {
      atomicAdd(&sums[0], static_cast<unsigned long long>(pairs.visible));
      if (row >= p.first_executed) atomicAdd(&sums[1], static_cast<unsigned long long>(pairs.executed));
    }
  }
  __syncthreads();
  if (thread < 2 && sums[thread] != 0) {
    std::uint64_t* const target = (thread == 0 ? p.visible : p.executed) + list;
    atomicAdd(reinterpret_cast<unsigned long long*>(target), sums[thread]);
  }
}

std::int64_t pages_of(std::int64_t tokens) {
  return ceil_div(tokens, kBlockTokens) * kPagesABlock;
}

}  // namespace

std::size_t pair_counts_workspace(std::int64_t tokens, const PrefillLists& lists) {
  if (lists.columns == nullptr) return 0;
  return static_cast<std::size_t>(lists.heads * pages_of(tokens)) * sizeof(std::int32_t);
}

void count_pairs_on_device(const DevicePairCountsParams& p) {
  constexpr std::int64_t kMostTokens = 1 << 24;  // pairs of a row fit in 32 bits
  TESSERA_CHECK(p.tokens >= 0 && p.tokens <= kMostTokens && p.lists.rows_per_block == kQueryBlockRows);
  TESSERA_CHECK(p.lists.query_blocks == ceil_div(p.tokens, kQueryBlockRows));
  if (p.tokens == 0 || p.lists.heads == 0) return;
  CountArguments a{};
  a.row_begin = p.lists.row_begin;
  a.entries = p.lists.entries;
  a.columns = p.lists.columns;
  a.column_counts = p.lists.column_counts;
  a.columns_of_page = static_cast<std::int32_t*>(p.workspace);
  a.visible = p.visible;
  a.executed = p.executed;
  a.column_stride = p.lists.column_stride;
  a.tokens = static_cast<int>(p.tokens);
  a.rows = static_cast<int>(p.lists.query_blocks);
  a.pages = static_cast<int>(pages_of(p.tokens));
  a.first_executed = static_cast<int>(std::min(p.first_executed, p.lists.query_blocks));
  const auto lists = static_cast<unsigned>(p.lists.heads);
  if (a.columns != nullptr) {
    fill_bytes(a.columns_of_page, 0, pair_counts_workspace(p.tokens, p.lists), p.stream);
    const std::int64_t most = std::min(p.lists.column_stride, p.tokens);
    if (most > 0) {
      launch(page_kernel,
             {.grid = dim3(static_cast<unsigned>(ceil_div(most, kThreads)), lists), .block = kThreads},
             p.stream, a);
    }
  }
  launch(row_kernel,
         {.grid = dim3(static_cast<unsigned>(ceil_div(a.rows, kWarps)), lists), .block = kThreads}, p.stream,
         a);
}

}  // namespace tessera::cuda
