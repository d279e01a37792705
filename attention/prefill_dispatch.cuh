// Which configuration of the prefill kernel serves a head dimension. One instantiation a file
// (prefill_cuda_*.cu).
#pragma once

#include "attention/prefill_kernel.cuh"

namespace tessera::cuda {

// By consumers, keys a tile, stages, turns, slack, steps of Q in registers: what was fastest on an H100 among
// the neighbours of each (two and three warpgroups, tiles of 64 … 192 keys, two … six stages). 192 keys make
// fewer and longer steps, 128 waste less at a window's edges.
template <typename T>
void prefill_by_head_dim(const PrefillParams& p) {
  switch (p.kv.head_dim) {
    case 64:
      return launch_prefill<PrefillConfig<T, 64, 3, 128, 4, true, 8, 0>>(p);
    case 128:
      if (prefill_tile_keys(p) == 192) return launch_prefill<PrefillConfig<T, 128, 2, 192, 2, true, 8, 0>>(p);
      return launch_prefill<PrefillConfig<T, 128, 2, 128, 2, true, 8, 8>>(p);
    default:
      return launch_prefill<PrefillConfig<T, 256, 2, 64, 2, true, 8, 0>>(p);
  }
}

}  // namespace tessera::cuda
