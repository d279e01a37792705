// The pairs that lists of pages and columns let through, counted on the GPU: count_pairs of selection.hpp for
// lists that never leave the device. All pointers are of the device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/sparse_prefill_cuda.hpp"
#include "runtime/core/device.hpp"

namespace tessera::cuda {

struct DevicePairCountsParams {
  std::int64_t tokens = 0;           // S
  PrefillLists lists;                // of all S tokens, 64 rows a query block; columns of a list at most S
  std::int64_t first_executed = 0;   // query blocks before this one are not computed
  void* workspace = nullptr;         // pair_counts_workspace bytes, aligned to 4
  std::uint64_t* visible = nullptr;  // (lists.heads) added to
  std::uint64_t* executed =
      nullptr;  // (lists.heads) added to: whole pages and columns for whole query blocks
  StreamView stream;
};

std::size_t pair_counts_workspace(std::int64_t tokens, const PrefillLists& lists);

void count_pairs_on_device(const DevicePairCountsParams& p);

}  // namespace tessera::cuda
