// Sparse prefill for query blocks of 16 and 32 rows, behind sparse_prefill_attention.
#pragma once

#include "attention/sparse_prefill_cuda.hpp"

namespace tessera::cuda {

struct ListItem;

// What it takes beside that function's own demands: D = 64 or 128 (ResourceError otherwise), no columns.
void check_block_prefill(const SparsePrefillParams& p);

// order: the lists' row blocks (lists · row_blocks) in the order in which they are taken.
void block_prefill_attention(const SparsePrefillParams& p, const ListItem* order);

}  // namespace tessera::cuda
