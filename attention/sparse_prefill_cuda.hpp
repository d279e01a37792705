// Sparse prefill attention on a Hopper GPU, the counterpart of sparse_prefill_attention in sparse.hpp: each
// query block against the pages in its list, under the causal mask, through the block table. Conventions are
// those of prefill_cuda.hpp: activations and cache bf16 or fp16, scores, softmax and lse fp32; a row that
// sees no key gets out = 0 and lse = −inf; blocks that the table does not hold are skipped. Pages that no
// list of a KV head names are not read: guests may hold anything there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "attention/selection.hpp"
#include "kvcache/kv_view.hpp"
#include "parallel/partition.hpp"
#include "runtime/core/device.hpp"

namespace tessera::cuda {

// The lists of a PrefillSelection on the device.
struct PrefillLists {
  int heads = 0;                            // lists: query heads H, or a divisor of H when heads share
  int rows_per_block = kQueryBlockRows;     // M: 16, 32, 64 or 128
  std::int64_t query_blocks = 0;            // of the whole sequence: ceil(S / M)
  const std::int64_t* row_begin = nullptr;  // (heads · query_blocks + 1) into entries
  // Ascending by block within a row. For M = 16 and 32 a block may stand there again for other pages.
  const BlockEntry* entries = nullptr;
  // (heads, column_stride) ascending positions, the first column_counts[list] of each; null: no columns. One
  // in a page that the row sees already counts once.
  const std::int32_t* columns = nullptr;
  std::int64_t column_stride = 0;
  const std::int32_t* column_counts = nullptr;  // (heads)
};

// Neighbouring rows of this call that share a query block.
struct QueryRows {
  std::int32_t token = 0;     // of the first row; the others follow it
  std::int32_t position = 0;  // of the first row
  std::int32_t rows = 0;      // 1 … M − position % M
};

// The rows of `tokens`, which ascend and lie one behind the other in q, by query blocks of M rows.
std::vector<QueryRows> query_rows(std::span<const TokenRange> tokens, int rows_per_block);

// All pointers are of the device, also those in kv and lists.
struct SparsePrefillParams {
  std::int64_t tokens = 0;          // T
  int heads = 0;                    // H; head h reads KV head h / (H / K)
  const void* q = nullptr;          // (T, H, D), 16-byte aligned; heads contiguous within a row
  std::int64_t q_row_stride = 0;    // elements between rows, a multiple of 8
  const QueryRows* rows = nullptr;  // (row_blocks) as query_rows makes them
  std::int64_t row_blocks = 0;
  PrefillLists lists;
  KvView kv;                    // not packed; its dtype (bf16 or fp16) is that of q and out
  std::int64_t pool_slots = 0;  // slots in the pool behind kv.slots
  float scale = 0;              // > 0
  void* out = nullptr;          // (T, H, D) contiguous, 16-byte aligned
  float* lse = nullptr;         // (T, H) natural log, or null
  void* workspace = nullptr;    // sparse_prefill_workspace bytes, aligned to 16; contents do not matter
  // (2) two words of this stream's own, zero before the first launch; every launch leaves them zero.
  std::uint32_t* counters = nullptr;
  StreamView stream;
};

// Bytes: a word on each piece of work, so that the longest lists go first.
std::size_t sparse_prefill_workspace(int heads, std::int64_t row_blocks);
// With columns: besides, a bit for each page that a query block may see.
std::size_t sparse_prefill_workspace(int heads, std::int64_t row_blocks, int lists, std::int64_t kv_length);

// D = 64, 128 or 256; for M = 16 and 32, which take no columns, 64 or 128. ResourceError where the device is
// not of compute capability 9.0; InternalError where the shapes are none that the kernel takes.
void sparse_prefill_attention(const SparsePrefillParams& p);

}  // namespace tessera::cuda
