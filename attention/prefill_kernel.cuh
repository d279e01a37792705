// The prefill kernel for Hopper. A CTA takes work items: kConsumers neighbouring query blocks of 64 rows of
// one query head. One warp brings keys and values through the block table into a ring of shared-memory stages
// (TMA); each consumer warpgroup owns one query block: S = Q Kᵀ and O += P V by wgmma, P from registers. The
// product Q Kᵀ of the next tile and P V of this one are in flight while the softmax of the next tile runs,
// and the warpgroups take turns at issuing, so that one's softmax hides behind another's products (the scheme
// of FlashAttention-3, Shah et al. 2024). Items go longest first to whoever is free. With a ring for each
// consumer, every warpgroup takes items of its own, one query block each, and no turns.
//
// A tile says by itself which keys it holds (KeyTile): consumers know nothing of tables and lists. Which keys
// an item needs is the producer's Keys class: HeldKeys here, ListedKeys in sparse_prefill_keys.cuh.
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

template <class C, class Keys>
__global__ void __launch_bounds__(C::kThreads, 1)
    prefill_kernel(const typename Keys::Arguments p, const __grid_constant__ typename Keys::Maps maps) {
  extern __shared__ __align__(1024) unsigned char memory[];
  PrefillShared<C>& s = *reinterpret_cast<PrefillShared<C>*>(memory);
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&maps.q);
    ptx::prefetch_tensor_map(&maps.pool);
    // Every warp of a consumer releases for itself.
    constexpr std::uint32_t kReleases = kWarpgroup / 32 * C::kReleaseLanes;
    for (PrefillRing<C>& ring : s.rings) {
      for (int block = 0; block < C::kRowBlocks; ++block) {
        ptx::barrier_init(&ring.q_full[block], 1);
        ptx::barrier_init(&ring.q_empty[block], kReleases);
      }
      for (int stage = 0; stage < C::kStages; ++stage) {
        ptx::barrier_init(&ring.k_full[stage], C::kFullArrivals);
        ptx::barrier_init(&ring.v_full[stage], C::kFullArrivals);
        ptx::barrier_init(&ring.k_empty[stage], kReleases * C::kRowBlocks);
        ptx::barrier_init(&ring.v_empty[stage], kReleases * C::kRowBlocks);
      }
    }
    for (BegunItem& begun : s.begun) {
      ptx::barrier_init(&begun.full, 1);
      ptx::barrier_init(&begun.empty, C::kReleaseLanes);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    ptx::give_registers<C::kProducerRegisters>();
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int ring = C::kRings == 1 ? 0 : warp % 2;
    if constexpr (C::kListed) {
      if (warp == ring) produce_keys<C, Keys>(p, maps, s.rings[ring], s.begun[ring], ring);
      if (warp == ring + 2) produce_values<C, Keys>(p, maps, s.rings[ring], s.begun[ring]);
    } else {
      if (warp == 0) produce<C, Keys>(p, maps, s.rings[ring]);
    }
  } else {
    ptx::take_registers<C::kConsumerRegisters>();
    const int consumer = static_cast<int>(threadIdx.x) / kWarpgroup - 1;
    consume<C>(p, s.rings[C::kRings == 1 ? 0 : consumer], C::kRings == 1 ? consumer : 0);
  }
}

struct DeviceLimits {
  int multiprocessors = 0;
  int l2_bytes = 0;
};
inline DeviceLimits device_limits(StreamView stream) {
  DeviceLimits limits;
  const int device = stream.device.ordinal;
  CUDA_CHECK(cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device));
  CUDA_CHECK(cudaDeviceGetAttribute(&limits.l2_bytes, cudaDevAttrL2CacheSize, device));
  return limits;
}

// Arguments: PrefillArguments or what derives from it.
template <class C, class Keys>
void launch_prefill_kernel(const typename Keys::Arguments& a, const typename Keys::Maps& maps,
                           int multiprocessors, StreamView stream) {
  constexpr int kSharedBytes = sizeof(PrefillShared<C>);
  static_assert(kSharedBytes <= 227 * 1024);
  const int ctas = static_cast<int>(ceil_div(a.items, C::kRings));
  launch(prefill_kernel<C, Keys>,
         {.grid = dim3(static_cast<unsigned>(std::min(ctas, multiprocessors))),
          .block = dim3(C::kThreads),
          .shared_bytes = kSharedBytes},
         stream, a, maps);
}

// Boxes of 64 channels and 64 rows of Q and of a block.
inline PrefillMaps prefill_maps(const void* q, int heads, std::int64_t tokens, std::int64_t q_row_stride,
                                const KvView& kv, std::int64_t pool_slots) {
  constexpr std::uint64_t kElement = 2;  // bytes
  const auto channels = static_cast<std::uint64_t>(kv.head_dim);
  const auto slots = static_cast<std::uint64_t>(pool_slots);
  const std::uint64_t row_bytes = channels * kElement;
  PrefillMaps maps;
  maps.q = make_tensor_map({q,
                            kv.dtype,
                            {channels, static_cast<std::uint64_t>(heads), static_cast<std::uint64_t>(tokens)},
                            {row_bytes, static_cast<std::uint64_t>(q_row_stride) * kElement},
                            {kBoxChannels, 1, kBlockRows}});
  maps.pool = make_tensor_map({kv.slots,
                               kv.dtype,
                               {channels, kBlockRows, 2 * slots},
                               {row_bytes, row_bytes * kBlockRows},
                               {kBoxChannels, kBlockRows, 1}});
  return maps;
}

template <class C>
void launch_prefill(const PrefillParams& p) {
  const DeviceLimits limits = device_limits(p.stream);
  launch_prefill_kernel<C, HeldKeys<C>>(
      prefill_arguments(p, C::kConsumers, limits.l2_bytes),
      prefill_maps(p.q, p.heads, p.tokens, p.q_row_stride, p.kv, p.pool_slots), limits.multiprocessors,
      p.stream);
}

}  // namespace tessera::cuda
