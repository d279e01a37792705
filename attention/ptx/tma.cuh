// Bulk tensor copies (TMA, sm_90): one thread starts a copy of a box from global into shared memory, and the
// bytes are counted by an mbarrier. Coordinates may lie outside the tensor, before it too: such elements
// arrive as zeros and count as bytes.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "attention/ptx/shared_address.cuh"

namespace tessera::cuda::ptx {

// How long a line should stay in L2: operand values of the .L2::cache_hint qualifier, as createpolicy makes
// them for a whole access.
inline constexpr std::uint64_t kEvictFirst = 0x12F0000000000000;
inline constexpr std::uint64_t kEvictLast = 0x14F0000000000000;

__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// target: aligned to 1024 bytes where the map has the 128-byte swizzle. x is the innermost coordinate.
__device__ __forceinline__ void load_box_3d(void* target, const CUtensorMap* map, std::uint64_t* barrier,
                                            int x, int y, int z, std::uint64_t cache_hint) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(target)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "l"(cache_hint)
      : "memory");
}

struct BoxAt5d {
  int at[5];  // coordinates, innermost first
};
__device__ __forceinline__ void load_box_5d(void* target, const CUtensorMap* map, std::uint64_t* barrier,
                                            const BoxAt5d& box, std::uint64_t cache_hint) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(shared_address(target)),
      "l"(map), "r"(shared_address(barrier)), "r"(box.at[0]), "r"(box.at[1]), "r"(box.at[2]), "r"(box.at[3]),
      "r"(box.at[4]), "l"(cache_hint)
      : "memory");
}

}  // namespace tessera::cuda::ptx
