// The plan of sparse prefill attention, which orders the work, and its launch.
#include "attention/sparse_prefill_cuda.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "attention/block_prefill_cuda.hpp"
#include "attention/prefill_kernel.cuh"
#include "attention/sparse_prefill_keys.cuh"
#include "attention/tensor_map.hpp"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {

// sparse_prefill_cuda_bf16.cu, sparse_prefill_cuda_f16.cu; with columns sparse_prefill_columns_bf16.cu,
// sparse_prefill_columns_f16.cu
template <typename T, bool kColumns>
void sparse_prefill_by_head_dim(const ListArguments& a, const ListMaps& maps, int head_dim,
                                int rows_per_block, int multiprocessors, StreamView stream);
using SparsePrefillRun = void(const ListArguments&, const ListMaps&, int, int, int, StreamView);
extern template SparsePrefillRun sparse_prefill_by_head_dim<__nv_bfloat16, false>;
extern template SparsePrefillRun sparse_prefill_by_head_dim<__half, false>;
extern template SparsePrefillRun sparse_prefill_by_head_dim<__nv_bfloat16, true>;
extern template SparsePrefillRun sparse_prefill_by_head_dim<__half, true>;

namespace {

constexpr int kOrderThreads = 1024;
constexpr int kBins = 1024;  // of lengths of lists
constexpr int kSeenThreads = 128;
constexpr int kSeenWords = 2048;  // of seen_pages at a time: a million tokens

struct SeenArguments {
  const std::int64_t* row_begin;
  const BlockEntry* entries;
  const QueryRows* rows;
  const std::int32_t* columns;
  const std::int32_t* column_counts;
  RowColumns* row_columns;    // (lists, row_blocks)
  std::uint32_t* seen_pages;  // (lists, row_blocks, page_words)
  std::int64_t column_stride;
  std::int64_t list_blocks;  // query blocks of the whole sequence
  int rows_per_block;
  int row_blocks;
  int page_words;
  int length;
};

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

// One CTA a query block and list: which pages the row sees, as bits, so that the producer drops the columns
// in them; and what the item costs.
__global__ void __launch_bounds__(kSeenThreads) seen_kernel(const SeenArguments p) {
  __shared__ std::uint32_t words[kSeenWords];
  __shared__ int pages;   // of the list
  __shared__ int beside;  // columns
  const int row_block = static_cast<int>(blockIdx.x);
  const int list = static_cast<int>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x);
  const QueryRows at = p.rows[row_block];
  const int end = min(at.position + at.rows, p.length);
  const std::int64_t list_row = list * p.list_blocks + at.position / p.rows_per_block;
  const BlockEntry* const entries = p.entries + p.row_begin[list_row];
  const int count = static_cast<int>(p.row_begin[list_row + 1] - p.row_begin[list_row]);
  const std::int32_t* const columns = p.columns + list * p.column_stride;
  const int reachable = columns_before(columns, p.column_counts[list], end);
  const std::int64_t row = static_cast<std::int64_t>(list) * p.row_blocks + row_block;
  std::uint32_t* const seen = p.seen_pages + row * p.page_words;
  if (thread == 0) pages = beside = 0;
  constexpr int kWordTokens = kPageTokens * 32;
  constexpr int kWordBlocks = kWordTokens / kBlockTokens;
  const int all_words = (end + kWordTokens - 1) / kWordTokens;
  int my_pages = 0;
  int my_beside = 0;
  for (int first = 0; first < all_words; first += kSeenWords) {
    const int here = min(kSeenWords, all_words - first);
    for (int i = thread; i < here; i += kSeenThreads) words[i] = 0;
    __syncthreads();
    for (int i = thread; i < count; i += kSeenThreads) {
      const unsigned entry = entries[i].bits;
      const int block = static_cast<int>(entry >> 4);
      const int word = block / kWordBlocks - first;
      if (word < 0 || word >= here) continue;
      atomicOr(&words[word], (entry & 15U) << block % kWordBlocks * kBlockPages);
      my_pages += __popc(entry & 15U);
    }
    __syncthreads();
    for (int i = thread; i < here; i += kSeenThreads) seen[first + i] = words[i];
    for (int i = thread; i < reachable; i += kSeenThreads) {
      const int column = columns[i];
      const int word = column / kWordTokens - first;
      if (word < 0 || word >= here) continue;
      my_beside += (words[word] >> column / kPageTokens % 32 & 1U) == 0 ? 1 : 0;
    }
    __syncthreads();
  }
  __syncthreads();
  my_pages = __reduce_add_sync(0xFFFFFFFF, my_pages);
  my_beside = __reduce_add_sync(0xFFFFFFFF, my_beside);
  if (thread % 32 == 0) {
    atomicAdd(&pages, my_pages);
    atomicAdd(&beside, my_beside);
  }
  __syncthreads();
  if (thread == 0) p.row_columns[row] = {reachable, pages + (beside + kPageTokens - 1) / kPageTokens};
}

struct OrderArguments {
  const std::int64_t* row_begin;
  const QueryRows* rows;
  const RowColumns* row_columns;  // null: no columns
  ListItem* order;
  std::int64_t list_blocks;  // query blocks of the whole sequence
  int heads_a_list;
  int rows_per_block;
  int row_blocks;
  int heads;
  int section_heads;
};

__device__ __forceinline__ ListItem item_at(const OrderArguments& p, int first_head, int heads, int index) {
  // As in the dense kernel: from the last query block to the first, each for all heads of the section.
  const int block = p.row_blocks - 1 - index / heads;
  const int head = first_head + index % heads;
  const std::int64_t list = head / p.heads_a_list * p.list_blocks + p.rows[block].position / p.rows_per_block;
  const std::int64_t begin = p.row_begin[list];
  return {begin, static_cast<std::int32_t>(p.row_begin[list + 1] - begin), head * p.row_blocks + block};
}

// What orders items: entries of the list, or pages and columns where there are columns.
__device__ __forceinline__ int cost_of(const OrderArguments& p, const ListItem& item) {
  if (p.row_columns == nullptr) return item.count;
  const int head = item.row / p.row_blocks;
  const std::int64_t list = head / p.heads_a_list;
  return p.row_columns[list * p.row_blocks + item.row - head * p.row_blocks].cost;
}

// One CTA a section of heads: its items by falling length of their lists, to a bin.
__global__ void __launch_bounds__(kOrderThreads) order_kernel(const OrderArguments p) {
  __shared__ int longest;
  __shared__ int places[kBins];
  __shared__ int warp_sums[32];
  const int first_head = static_cast<int>(blockIdx.x) * p.section_heads;
  const int heads = min(p.section_heads, p.heads - first_head);
  const int items = heads * p.row_blocks;
  ListItem* const order = p.order + static_cast<std::int64_t>(first_head) * p.row_blocks;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) longest = 1;
  places[thread] = 0;
  __syncthreads();
  int mine = 0;
  for (int i = thread; i < items; i += kOrderThreads)
    mine = max(mine, cost_of(p, item_at(p, first_head, heads, i)));
  atomicMax(&longest, mine);
  __syncthreads();
  const auto bin_of = [&](int count) {
    return kBins - 1 - static_cast<int>(static_cast<std::int64_t>(count) * (kBins - 1) / longest);
  };
  for (int i = thread; i < items; i += kOrderThreads) {
    atomicAdd(&places[bin_of(cost_of(p, item_at(p, first_head, heads, i)))], 1);
  }
  __syncthreads();
  // Exclusive sums, one bin a thread.
  const int own = places[thread];
  int sum = own;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(0xFFFFFFFF, sum, step);
    if (thread % 32 >= step) sum += before;
  }
  if (thread % 32 == 31) warp_sums[thread / 32] = sum;
  __syncthreads();
  int offset = sum - own;
  for (int warp = 0; warp < thread / 32; ++warp) offset += warp_sums[warp];
  places[thread] = offset;
  __syncthreads();
  for (int i = thread; i < items; i += kOrderThreads) {
    const ListItem item = item_at(p, first_head, heads, i);
    order[atomicAdd(&places[bin_of(cost_of(p, item))], 1)] = item;
  }
}
static_assert(kBins == kOrderThreads);

void order_items(const SparsePrefillParams& p, const ListArguments& a) {
  const OrderArguments order = {p.lists.row_begin,
                                p.rows,
                                a.row_columns,
                                static_cast<ListItem*>(p.workspace),
                                p.lists.query_blocks,
                                p.heads / p.lists.heads,
                                p.lists.rows_per_block,
                                a.row_blocks,
                                p.heads,
                                a.section_heads};
  launch(order_kernel,
         {.grid = dim3(static_cast<unsigned>(ceil_div(p.heads, a.section_heads))), .block = kOrderThreads},
         p.stream, order);
}

// What lies in the workspace, in this order.
struct WorkspaceSizes {
  std::size_t order, row_columns, seen_pages;  // bytes
};
int page_words(std::int64_t kv_length) {
  return static_cast<int>(ceil_div(ceil_div(kv_length, kPageTokens), 32));
}
WorkspaceSizes workspace_sizes(int heads, std::int64_t row_blocks, int lists, std::int64_t kv_length) {
  const auto blocks = static_cast<std::size_t>(row_blocks);
  const std::size_t rows = static_cast<std::size_t>(lists) * blocks;
  return {sizeof(ListItem) * static_cast<std::size_t>(heads) * blocks, sizeof(RowColumns) * rows,
          sizeof(std::uint32_t) * rows * static_cast<std::size_t>(page_words(kv_length))};
}

void find_seen_pages(const SparsePrefillParams& p, ListArguments& a) {
  const WorkspaceSizes sizes = workspace_sizes(p.heads, p.row_blocks, p.lists.heads, p.kv.length);
  char* const row_columns = static_cast<char*>(p.workspace) + sizes.order;
  SeenArguments seen{};
  seen.row_begin = p.lists.row_begin;
  seen.entries = p.lists.entries;
  seen.rows = p.rows;
  seen.columns = p.lists.columns;
  seen.column_counts = p.lists.column_counts;
  seen.row_columns = reinterpret_cast<RowColumns*>(row_columns);
  seen.seen_pages = reinterpret_cast<std::uint32_t*>(row_columns + sizes.row_columns);
  seen.column_stride = p.lists.column_stride;
  seen.list_blocks = p.lists.query_blocks;
  seen.rows_per_block = p.lists.rows_per_block;
  seen.row_blocks = a.row_blocks;
  seen.page_words = page_words(p.kv.length);
  seen.length = a.length;
  launch(seen_kernel,
         {.grid = dim3(static_cast<unsigned>(a.row_blocks), static_cast<unsigned>(p.lists.heads)),
          .block = kSeenThreads},
         p.stream, seen);
  a.pool = p.kv.slots;
  a.columns = p.lists.columns;
  a.row_columns = seen.row_columns;
  a.seen_pages = seen.seen_pages;
  a.column_stride = p.lists.column_stride;
  a.page_words = seen.page_words;
  a.heads_a_list = p.heads / p.lists.heads;
}

// Query blocks of 16 or 32 rows: block_prefill_cuda.hpp.
bool by_warps(const SparsePrefillParams& p) {
  return p.lists.rows_per_block < kQueryBlockRows;
}

// Boxes of all channels: of a block, of a page, and of 8 rows of a page.
ListMaps list_maps(const SparsePrefillParams& p) {
  constexpr std::uint64_t kElement = 2;  // bytes
  constexpr std::uint64_t kGroupBytes = kBoxChannels * kElement;
  const std::uint64_t row_bytes = static_cast<std::uint64_t>(p.kv.head_dim) * kElement;
  const auto groups = static_cast<std::uint32_t>(p.kv.head_dim / kBoxChannels);
  const auto halves = 2 * static_cast<std::uint64_t>(p.pool_slots);  // blocks of keys or of values
  const auto boxes = [&](std::uint64_t rows) {
    return make_tensor_map_5d({p.kv.slots,
                               p.kv.dtype,
                               {kBoxChannels, 8, groups, rows / 8, halves * kBlockTokens / rows},
                               {row_bytes, kGroupBytes, 8 * row_bytes, rows * row_bytes},
                               {kBoxChannels, 8, groups, static_cast<std::uint32_t>(rows / 8), 1}});
  };
  const PrefillMaps dense = prefill_maps(p.q, p.heads, p.tokens, p.q_row_stride, p.kv, p.pool_slots);
  const std::uint64_t page_bytes = kPageTokens * row_bytes;
  return {dense, boxes(kBlockTokens), boxes(kPageTokens),
          make_tensor_map_5d({p.kv.slots,
                              p.kv.dtype,
                              {kBoxChannels, kPageTokens, groups, halves * kBlockPages, 1},
                              {row_bytes, kGroupBytes, page_bytes, page_bytes},
                              {kBoxChannels, 8, groups, 1, 1}})};
}

bool check_sparse_prefill(const SparsePrefillParams& p) {
  constexpr std::int64_t kMostTokens = 1 << 29;  // positions and their differences fit in int
  constexpr std::int64_t kMostSlots = 1 << 27;   // pages of the pool fit in int
  TESSERA_CHECK(p.kv.dtype == DType::kBF16 || p.kv.dtype == DType::kF16);
  TESSERA_CHECK(p.kv.head_dim == 64 || p.kv.head_dim == 128 || p.kv.head_dim == 256);
  TESSERA_CHECK(p.kv.kv_heads > 0 && p.heads % p.kv.kv_heads == 0);
  TESSERA_CHECK(p.kv.rows_of_head == nullptr);
  TESSERA_CHECK(p.kv.slot_bytes == 4ULL * kBlockTokens * static_cast<std::size_t>(p.kv.head_dim));
  TESSERA_CHECK(p.tokens >= 0 && p.tokens <= kMostTokens && p.kv.length >= 0 && p.kv.length <= kMostTokens);
  TESSERA_CHECK(p.q_row_stride % 8 == 0 &&
                p.q_row_stride >= static_cast<std::int64_t>(p.heads) * p.kv.head_dim);
  TESSERA_CHECK(p.pool_slots > 0 && p.pool_slots < kMostSlots && p.scale > 0);
  const int rows = p.lists.rows_per_block;
  TESSERA_CHECK(rows == kPageTokens || rows == 2 * kPageTokens || rows == kQueryBlockRows ||
                rows == 2 * kQueryBlockRows);
  if (p.lists.columns != nullptr) {
    constexpr std::int64_t kMostGathered = 1 << 25;  // slots: their rows fit in 32 bits
    TESSERA_CHECK(p.lists.column_counts != nullptr && p.lists.column_stride >= 0);
    TESSERA_CHECK(p.pool_slots <= kMostGathered && p.lists.heads < (1 << 16));
  }
  if (p.tokens == 0 || p.heads == 0) return false;
  TESSERA_CHECK(p.lists.heads > 0 && p.heads % p.lists.heads == 0);
  TESSERA_CHECK(p.row_blocks > 0 && p.row_blocks * p.heads < (1LL << 31));
  TESSERA_CHECK(p.lists.row_begin != nullptr && p.workspace != nullptr && p.counters != nullptr);
  if (by_warps(p)) check_block_prefill(p);
  return true;
}

// Once for the heads that share a list: their tiles are taken together.
void attend_by_warps(const SparsePrefillParams& p) {
  const std::int64_t length = std::min(p.kv.length, p.kv.blocks * kBlockTokens);
  const int l2_bytes = device_limits(p.stream).l2_bytes;
  const int heads = section_heads(length, p.kv.head_dim, p.heads, p.kv.kv_heads, l2_bytes);
  SparsePrefillParams lists = p;
  lists.heads = p.lists.heads;
  ListArguments a{};
  a.row_blocks = static_cast<int>(p.row_blocks);
  a.section_heads = std::max(1, heads / (p.heads / p.lists.heads));
  order_items(lists, a);
  block_prefill_attention(p, static_cast<const ListItem*>(p.workspace));
}

}  // namespace

std::vector<QueryRows> query_rows(std::span<const TokenRange> tokens, int rows_per_block) {
  std::vector<QueryRows> blocks;
  std::int64_t token = 0;
  for (const TokenRange& range : tokens) {
    for (std::int64_t position = range.begin; position < range.end;) {
      const std::int64_t rows = std::min(rows_per_block - position % rows_per_block, range.end - position);
      blocks.push_back({static_cast<std::int32_t>(token), static_cast<std::int32_t>(position),
                        static_cast<std::int32_t>(rows)});
      token += rows;
      position += rows;
    }
  }
  return blocks;
}

std::size_t sparse_prefill_workspace(int heads, std::int64_t row_blocks) {
  return sizeof(ListItem) * static_cast<std::size_t>(heads) * static_cast<std::size_t>(row_blocks);
}

std::size_t sparse_prefill_workspace(int heads, std::int64_t row_blocks, int lists, std::int64_t kv_length) {
  const WorkspaceSizes sizes = workspace_sizes(heads, row_blocks, lists, kv_length);
  return sizes.order + sizes.row_columns + sizes.seen_pages;
}

ListPlan plan_sparse_prefill(const SparsePrefillParams& p) {
  const DeviceLimits limits = device_limits(p.stream);
  ListArguments a{};
  a.table = p.kv.table;
  a.table_stride = p.kv.table_stride;
  a.tokens = static_cast<int>(p.tokens);
  a.length = static_cast<int>(std::min(p.kv.length, p.kv.blocks * kBlockTokens));
  a.heads = p.heads;
  a.group = p.heads / p.kv.kv_heads;
  a.row_blocks = static_cast<int>(p.row_blocks);
  a.items = a.row_blocks * p.heads;
  a.section_heads = section_heads(a.length, p.kv.head_dim, p.heads, p.kv.kv_heads, limits.l2_bytes);
  a.scale = p.scale;
  a.out = p.out;
  a.lse = p.lse;
  a.counters = p.counters;
  a.order = static_cast<const ListItem*>(p.workspace);
  a.rows = p.rows;
  a.entries = p.lists.entries;
  if (p.lists.columns != nullptr) find_seen_pages(p, a);
  order_items(p, a);
  return {a, list_maps(p), limits.multiprocessors};
}

void sparse_prefill_attention(const SparsePrefillParams& p) {
  if (!check_sparse_prefill(p)) return;
  int major = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, p.stream.device.ordinal));
  if (major != 9) {
    throw ResourceError("sparse prefill on the GPU needs compute capability 9, this device has {}", major);
  }
  if (by_warps(p)) return attend_by_warps(p);
  const ListPlan plan = plan_sparse_prefill(p);
  const bool columns = p.lists.columns != nullptr;
  SparsePrefillRun* const runs[2][2] = {
      {sparse_prefill_by_head_dim<__half, false>, sparse_prefill_by_head_dim<__half, true>},
      {sparse_prefill_by_head_dim<__nv_bfloat16, false>, sparse_prefill_by_head_dim<__nv_bfloat16, true>}};
  SparsePrefillRun* const run = runs[p.kv.dtype == DType::kBF16 ? 1 : 0][columns ? 1 : 0];
  run(plan.arguments, plan.maps, p.kv.head_dim, p.lists.rows_per_block, plan.multiprocessors, p.stream);
}

}  // namespace tessera::cuda
