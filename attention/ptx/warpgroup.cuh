// Registers and order among the warpgroups of a CTA (sm_90a): moving registers from the warps that copy to
// the warps that compute, named barriers, the fence before the asynchronous proxy, fast exp2.
#pragma once

#include <cstdint>

namespace tessera::cuda::ptx {

// All warps of a warpgroup execute these; kRegisters is a multiple of 8 in 24 … 256. They take effect only in
// kernels whose registers are capped at entry (__launch_bounds__ with a minimum of blocks).
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Named barriers 1 … 15 (0 is that of __syncthreads). `threads` counts those who wait and those who only
// arrive.
__device__ __forceinline__ void named_barrier_wait(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Each thread that wrote shared memory by ordinary stores, before the barrier behind which wgmma or a bulk
// copy reads it.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// 2^x, relative error 2^-22; 2^−inf = 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace tessera::cuda::ptx
