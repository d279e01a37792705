// Which configuration of the prefill kernel serves a head dimension. One instantiation a file
// (prefill_cuda_*.cu).
#pragma once

#include "attention/prefill_kernel.cuh"

namespace tessera::cuda {

template <typename T, int kHeadDim>
struct PrefillChoice;
template <typename T>
struct PrefillChoice<T, 64> {
  using Config = PrefillConfig<T, 64, 3, 128, 2, true, 0, 8, 0, 1>;
};
template <typename T>
struct PrefillChoice<T, 128> {
  using Config = PrefillConfig<T, 128, 2, 128, 2, true, 0, 8, 0, 1>;
};
template <typename T>
struct PrefillChoice<T, 256> {
  using Config = PrefillConfig<T, 256, 2, 64, 2, true, 0, 8, 0, 1>;
};

template <typename T>
void prefill_by_head_dim(const PrefillParams& p) {
  switch (p.kv.head_dim) {
    case 64:
      return launch_prefill<typename PrefillChoice<T, 64>::Config>(p);
    case 128:
      return launch_prefill<typename PrefillChoice<T, 128>::Config>(p);
    default:
      return launch_prefill<typename PrefillChoice<T, 256>::Config>(p);
  }
}

}  // namespace tessera::cuda
