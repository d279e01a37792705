// Two or more CTAs side by side that reach into each other's shared memory (thread block clusters, sm_90).
#pragma once

#include <cstdint>

#include "attention/ptx/shared_address.cuh"

namespace tessera::cuda::ptx {

__device__ __forceinline__ std::uint32_t cluster_rank() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of all CTAs of the cluster; what they wrote before is seen after.
__device__ __forceinline__ void cluster_wait_for_all() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// The same place in the shared memory of another CTA.
__device__ __forceinline__ std::uint32_t address_in(std::uint32_t rank, const void* pointer) {
  std::uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(shared_address(pointer)), "r"(rank));
  return address;
}

// An arrival at a barrier of that CTA; what this thread wrote before is seen by who waits for it there.
__device__ __forceinline__ void barrier_arrive_in(std::uint32_t rank, std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(address_in(rank, barrier))
               : "memory");
}

__device__ __forceinline__ void store_in(std::uint32_t rank, int* target, int value) {
  asm volatile("st.shared::cluster.s32 [%0], %1;" ::"r"(address_in(rank, target)), "r"(value) : "memory");
}

// As barrier_wait, where arrivals come from other CTAs.
__device__ __forceinline__ void barrier_wait_cluster(std::uint64_t* barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni over;\n"
      "bra.uni again;\n"
      "over:\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

}  // namespace tessera::cuda::ptx
