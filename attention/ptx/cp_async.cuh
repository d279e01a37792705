// Asynchronous copies of 16 bytes from device to shared memory (PTX ISA, cp.async; sm_80 and later).
#pragma once

#include <cstdint>

#include "attention/ptx/shared_address.cuh"

namespace tessera::cuda::ptx {

// Past L1, which a stream of keys has no use for. With valid = false nothing is read and 16 zeros are
// written; the source must be a device address all the same.
__device__ __forceinline__ void copy_16_bytes(std::uint32_t target, const void* source, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(target), "l"(source),
               "r"(bytes)
               : "memory");
}

// Copies issued since the last commit form a group.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// An arrival at the barrier once all copies of this thread so far have landed, one of those that the barrier
// expects. It orders no other stores of the thread.
__device__ __forceinline__ void arrive_after_copies(std::uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(shared_address(barrier))
               : "memory");
}

// Returns when at most `kGroups` of the newest groups of this thread are under way. What other threads copied
// needs a barrier on top.
template <int kGroups>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroups) : "memory");
}

}  // namespace tessera::cuda::ptx
