// The dense prefill kernel for Hopper. A CTA takes work items: kConsumers neighbouring query blocks of 64
// rows of one query head. One warp brings keys and values through the block table into a ring of
// shared-memory stages (TMA); each consumer warpgroup owns one query block: S = Q Kᵀ and O += P V by wgmma, P
// from registers. The product Q Kᵀ of the next tile and P V of this one are in flight while the softmax of
// the next tile runs, and the warpgroups take turns at issuing, so that one's softmax hides behind another's
// products (the scheme of FlashAttention-3, Shah et al. 2024). Items go longest first to whichever CTA is
// free.
//
// A tile says by itself which keys it holds (KeyTile): consumers know nothing of tables and lists. Another
// source of keys is another class in place of HeldBlocks.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "attention/prefill_consumer.cuh"
#include "attention/prefill_cuda.hpp"
#include "attention/prefill_producer.cuh"
#include "attention/prefill_tile.cuh"
#include "attention/ptx/mbarrier.cuh"
#include "attention/ptx/warpgroup.cuh"
#include "attention/tensor_map.hpp"
#include "runtime/core/cuda_check.hpp"
#include "runtime/core/cuda_launch.hpp"

namespace tessera::cuda {

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    prefill_kernel(const PrefillArguments p, const __grid_constant__ CUtensorMap q_map,
                   const __grid_constant__ CUtensorMap pool_map) {
  extern __shared__ __align__(1024) unsigned char memory[];
  PrefillShared<C>& s = *reinterpret_cast<PrefillShared<C>*>(memory);
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&q_map);
    ptx::prefetch_tensor_map(&pool_map);
    constexpr std::uint32_t kWarps = kWarpgroup / 32;  // every warp of a consumer releases for itself
    for (int w = 0; w < C::kConsumers; ++w) {
      ptx::barrier_init(&s.q_full[w], 1);
      ptx::barrier_init(&s.q_empty[w], kWarps);
    }
    for (int stage = 0; stage < C::kStages; ++stage) {
      ptx::barrier_init(&s.k_full[stage], 1);
      ptx::barrier_init(&s.v_full[stage], 1);
      ptx::barrier_init(&s.k_empty[stage], kWarps * C::kConsumers);
      ptx::barrier_init(&s.v_empty[stage], kWarps * C::kConsumers);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    ptx::give_registers<C::kProducerRegisters>();
    if (threadIdx.x < 32) produce<C>(p, &q_map, &pool_map, s);
  } else {
    ptx::take_registers<C::kConsumerRegisters>();
    consume<C>(p, s, static_cast<int>(threadIdx.x) / kWarpgroup - 1);
  }
}

template <class C>
void launch_prefill(const PrefillParams& p) {
  int device = 0;
  int multiprocessors = 0;
  int l2_bytes = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  CUDA_CHECK(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, device));
  constexpr std::uint64_t kRowBytes = C::kHeadDim * sizeof(typename C::T);
  const CUtensorMap q_map = make_tensor_map(
      {p.q,
       p.kv.dtype,
       {C::kHeadDim, static_cast<std::uint64_t>(p.heads), static_cast<std::uint64_t>(p.tokens)},
       {kRowBytes, static_cast<std::uint64_t>(p.q_row_stride) * sizeof(typename C::T)},
       {kBoxChannels, 1, kBlockRows}});
  const CUtensorMap pool_map =
      make_tensor_map({p.kv.slots,
                       p.kv.dtype,
                       {C::kHeadDim, kBlockRows, static_cast<std::uint64_t>(2 * p.pool_slots)},
                       {kRowBytes, kRowBytes * kBlockRows},
                       {kBoxChannels, kBlockRows, 1}});
  const PrefillArguments a = prefill_arguments(p, C::kConsumers, l2_bytes);
  constexpr int kSharedBytes = sizeof(PrefillShared<C>);
  static_assert(kSharedBytes <= 227 * 1024);
  launch(prefill_kernel<C>,
         {.grid = dim3(static_cast<unsigned>(std::min(a.items, multiprocessors))),
          .block = dim3(C::kThreads),
          .shared_bytes = kSharedBytes},
         p.stream, a, q_map, pool_map);
}

}  // namespace tessera::cuda
