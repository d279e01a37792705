// The launch of sparse prefill for query blocks of 16 and 32 rows.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "attention/block_prefill_cuda.hpp"
#include "attention/block_prefill_kernel.cuh"
#include "runtime/core/cuda_check.hpp"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {
namespace {

template <typename T>
void launch_blocks(const BlockPrefillArguments& a, int head_dim, StreamView stream) {
  int multiprocessors = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, stream.device.ordinal));
  const int resident = head_dim == 64 ? 2 * multiprocessors : multiprocessors;
  const int ctas = std::min(resident, static_cast<int>(ceil_div(a.tiles, kBlockPrefillWarps)));
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(ctas)), .block = kBlockPrefillThreads};
  if (head_dim == 64) {
    launch(block_prefill_kernel<T, 64>, shape, stream, a);
  } else {
    launch(block_prefill_kernel<T, 128>, shape, stream, a);
  }
}

}  // namespace

void check_block_prefill(const SparsePrefillParams& p) {
  if (p.kv.head_dim == 256) {
    throw ResourceError(
        "sparse prefill on the GPU: query blocks of {} rows take heads of 64 or 128 channels, not 256; "
        "choose "
        "blocks of 64 or 128 rows",
        p.lists.rows_per_block);
  }
  constexpr std::int64_t kMostSlots = 1 << 29;  // pages of the pool fit in int
  TESSERA_CHECK(p.lists.columns == nullptr && p.pool_slots < kMostSlots);
  TESSERA_CHECK(2 * p.row_blocks * p.heads < (1LL << 31));
}

void block_prefill_attention(const SparsePrefillParams& p, const ListItem* order) {
  BlockPrefillArguments a{};
  a.table = p.kv.table;
  a.order = order;
  a.rows = p.rows;
  a.entries = p.lists.entries;
  a.q = p.q;
  a.pool = p.kv.slots;
  a.out = p.out;
  a.lse = p.lse;
  a.counters = p.counters;
  a.table_stride = p.kv.table_stride;
  a.q_row_stride = p.q_row_stride;
  a.length = static_cast<int>(std::min(p.kv.length, p.kv.blocks * kBlockTokens));
  a.heads = p.heads;
  a.group = p.heads / p.kv.kv_heads;
  a.heads_a_list = p.heads / p.lists.heads;
  a.tiles_a_block = p.lists.rows_per_block / kWarpRows;
  a.row_blocks = static_cast<int>(p.row_blocks);
  a.tiles = a.row_blocks * p.heads * a.tiles_a_block;
  a.scale = p.scale;
  if (p.kv.dtype == DType::kBF16) {
    launch_blocks<__nv_bfloat16>(a, p.kv.head_dim, p.stream);
  } else {
    launch_blocks<__half>(a, p.kv.head_dim, p.stream);
  }
}

}  // namespace tessera::cuda
