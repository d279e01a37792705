// block_sparse on the GPU: means of blocks, their products, and the best key blocks of each query block, as
// lists for sparse_prefill_cuda.hpp. Definitions and order of additions are those of
// attention/block_scores.hpp, so that the same bits of Q and K give the same choice as on the CPU. For edges
// of 16 and 32 products go through the tensor cores, by means in two parts of 8 bits each, and a choice may
// differ where a score lies within about 2^-15 of the sum of its products' magnitudes of the border. Nothing
// is read back. All pointers are of the device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/sparse_prefill_cuda.hpp"
#include "kvcache/kv_view.hpp"
#include "runtime/core/device.hpp"

namespace tessera::cuda {

struct BlockSelectProblem {
  std::int64_t tokens = 0;  // S
  int heads = 0;            // H; each chooses for itself
  int kv_heads = 0;         // K
  int head_dim = 0;         // D: 64, 128 or, for edges of 64 and 128, 256
  std::int64_t edge = 64;   // tokens of a block of queries and of keys: 16, 32, 64 or 128
  std::int64_t budget = 0;  // blocks a row; the first, the diagonal and the one before are kept in any case

  constexpr std::int64_t rows() const { return (tokens + edge - 1) / edge; }
};

// Of all lists together, known beforehand.
std::int64_t block_list_entries(const BlockSelectProblem& problem);

struct DeviceBlockSelectParams {
  BlockSelectProblem problem;
  const void* q = nullptr;            // (S, H, D), dtype of kv: bf16 or fp16
  std::int64_t q_row_stride = 0;      // elements, a multiple of 2
  KvView kv;                          // not packed; every block held
  void* workspace = nullptr;          // block_select_workspace bytes, aligned to 16
  std::int64_t* row_begin = nullptr;  // (H · rows + 1)
  BlockEntry* entries = nullptr;      // (block_list_entries)
  StreamView stream;
};

std::size_t block_select_workspace(const BlockSelectProblem& problem);

// Lists as PrefillLists takes them: rows_per_block = edge, query_blocks = rows. For edges of 16 and 32 every
// block chosen is an entry of its own.
void select_blocks_on_device(const DeviceBlockSelectParams& p);

}  // namespace tessera::cuda
