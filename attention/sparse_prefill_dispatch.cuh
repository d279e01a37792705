// Which configuration of the prefill kernel serves lists of pages, and of columns. One instantiation a file
// (sparse_prefill_cuda_*.cu, sparse_prefill_columns_*.cu).
#pragma once

#include <type_traits>

#include "attention/prefill_kernel.cuh"
#include "attention/sparse_prefill_columns.cuh"
#include "attention/sparse_prefill_keys.cuh"

namespace tessera::cuda {

// By consumers, keys a tile, stages, turns, slack, steps of Q in registers, rows of a part, rings. A list for
// 128 rows is read by two warpgroups together. Lists for 64 rows are read by one each; tiles are then
// shorter, and Q stays in registers, since products of 64 keys would read Q from shared memory as often as
// the keys. On an H100 at 131,072 tokens two stages of 96 keys took .94 of the time of three of 64 with
// random blocks, .80 with single pages.
template <typename T, int kHeadDim, int kRowsPerBlock, bool kColumns>
struct ListedConfig;
template <typename T, bool kColumns>
struct ListedConfig<T, 64, 128, kColumns>
    : PrefillConfig<T, 64, 2, 128, 2, true, 8, 0, kPageTokens, 1, kColumns> {};
template <typename T, bool kColumns>
struct ListedConfig<T, 128, 128, kColumns>
    : PrefillConfig<T, 128, 2, 128, 2, kColumns, 8, kColumns ? 0 : 8, kPageTokens, 1, kColumns> {};
template <typename T, bool kColumns>
struct ListedConfig<T, 256, 128, kColumns>
    : PrefillConfig<T, 256, 2, 64, 2, true, 8, 0, kPageTokens, 1, kColumns> {};
template <typename T, bool kColumns>
struct ListedConfig<T, 64, 64, kColumns>
    : PrefillConfig<T, 64, 2, 128, 2, false, 8, 4, kPageTokens, 2, kColumns> {};
template <typename T, bool kColumns>
struct ListedConfig<T, 128, 64, kColumns>
    : PrefillConfig<T, 128, 2, 96, 2, false, 8, 8, kPageTokens, 2, kColumns> {};
template <typename T, bool kColumns>
struct ListedConfig<T, 256, 64, kColumns>
    : PrefillConfig<T, 256, 2, 64, 1, false, 8, 0, kPageTokens, 2, kColumns> {};

template <class C>
void launch_lists(const ListArguments& a, const ListMaps& maps, int multiprocessors, StreamView stream) {
  using Keys = std::conditional_t<C::kGathers, ListedColumnKeys<C>, ListedKeys<C>>;
  launch_prefill_kernel<C, Keys>(a, maps, multiprocessors, stream);
}

template <typename T, int kHeadDim, bool kColumns>
void launch_listed(const ListArguments& a, const ListMaps& maps, int rows_per_block, int multiprocessors,
                   StreamView stream) {
  if (rows_per_block == kQueryBlockRows) {
    launch_lists<ListedConfig<T, kHeadDim, 64, kColumns>>(a, maps, multiprocessors, stream);
  } else {
    launch_lists<ListedConfig<T, kHeadDim, 128, kColumns>>(a, maps, multiprocessors, stream);
  }
}

template <typename T, bool kColumns>
void sparse_prefill_by_head_dim(const ListArguments& a, const ListMaps& maps, int head_dim,
                                int rows_per_block, int multiprocessors, StreamView stream) {
  switch (head_dim) {
    case 64:
      return launch_listed<T, 64, kColumns>(a, maps, rows_per_block, multiprocessors, stream);
    case 128:
      return launch_listed<T, 128, kColumns>(a, maps, rows_per_block, multiprocessors, stream);
    default:
      return launch_listed<T, 256, kColumns>(a, maps, rows_per_block, multiprocessors, stream);
  }
}

}  // namespace tessera::cuda
