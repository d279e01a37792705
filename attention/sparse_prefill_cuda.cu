// The plan of sparse prefill attention, which orders the work, and its launch.
#include "attention/sparse_prefill_cuda.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "attention/prefill_kernel.cuh"
#include "attention/sparse_prefill_keys.cuh"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {

// sparse_prefill_cuda_bf16.cu, sparse_prefill_cuda_f16.cu
template <typename T>
void sparse_prefill_by_head_dim(const ListArguments& a, const PrefillMaps& maps, int head_dim,
                                int rows_per_block, int multiprocessors, StreamView stream);
extern template void sparse_prefill_by_head_dim<__nv_bfloat16>(const ListArguments&, const PrefillMaps&, int,
                                                               int, int, StreamView);
extern template void sparse_prefill_by_head_dim<__half>(const ListArguments&, const PrefillMaps&, int, int,
                                                        int, StreamView);

namespace {

constexpr int kOrderThreads = 1024;
constexpr int kBins = 1024;  // of lengths of lists

struct OrderArguments {
  const std::int64_t* row_begin;
  const QueryRows* rows;
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
    mine = max(mine, item_at(p, first_head, heads, i).count);
  atomicMax(&longest, mine);
  __syncthreads();
  const auto bin_of = [&](int count) {
    return kBins - 1 - static_cast<int>(static_cast<std::int64_t>(count) * (kBins - 1) / longest);
  };
  for (int i = thread; i < items; i += kOrderThreads) {
    atomicAdd(&places[bin_of(item_at(p, first_head, heads, i).count)], 1);
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
    order[atomicAdd(&places[bin_of(item.count)], 1)] = item;
  }
}
static_assert(kBins == kOrderThreads);

void order_items(const SparsePrefillParams& p, const ListArguments& a) {
  const OrderArguments order = {p.lists.row_begin,
                                p.rows,
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
  TESSERA_CHECK(p.lists.rows_per_block == kQueryBlockRows || p.lists.rows_per_block == 2 * kQueryBlockRows);
  if (p.tokens == 0 || p.heads == 0) return false;
  TESSERA_CHECK(p.lists.heads > 0 && p.heads % p.lists.heads == 0);
  TESSERA_CHECK(p.row_blocks > 0 && p.row_blocks * p.heads < (1LL << 31));
  TESSERA_CHECK(p.lists.row_begin != nullptr && p.workspace != nullptr && p.counters != nullptr);
  return true;
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

void sparse_prefill_attention(const SparsePrefillParams& p) {
  if (!check_sparse_prefill(p)) return;
  int major = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, p.stream.device.ordinal));
  if (major != 9) {
    throw ResourceError("sparse prefill on the GPU needs compute capability 9, this device has {}", major);
  }
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
  order_items(p, a);
  const PrefillMaps maps = prefill_maps(p.q, p.heads, p.tokens, p.q_row_stride, p.kv, p.pool_slots);
  const auto run = p.kv.dtype == DType::kBF16 ? sparse_prefill_by_head_dim<__nv_bfloat16>
                                              : sparse_prefill_by_head_dim<__half>;
  run(a, maps, p.kv.head_dim, p.lists.rows_per_block, limits.multiprocessors, p.stream);
}

}  // namespace tessera::cuda
