// Which configuration of the prefill kernel serves a head dimension. One instantiation a file
// (prefill_cuda_*.cu).
#pragma once

#include "attention/prefill_kernel.cuh"

namespace tessera::cuda {

// By consumers, keys a tile, stages, turns, slack, steps of Q in registers. 192 keys make fewer and longer
// steps; 128 waste less at a window's edges and on short sequences.
template <typename T>
void prefill_by_head_dim(const PrefillParams& p) {
  switch (p.kv.head_dim) {
    case 64:
      return launch_prefill<PrefillConfig<T, 64, 3, 128, 2, true, 8, 0>>(p);
    case 128:
      if (p.tile_keys == 192) return launch_prefill<PrefillConfig<T, 128, 2, 192, 2, true, 8, 0>>(p);
      return launch_prefill<PrefillConfig<T, 128, 2, 128, 2, true, 8, 0>>(p);
    default:
      return launch_prefill<PrefillConfig<T, 256, 2, 64, 2, true, 8, 0>>(p);
  }
}

}  // namespace tessera::cuda
