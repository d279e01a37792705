// Programmatic dependent launch (CUDA C++ Programming Guide): a kernel launched with
// LaunchShape::overlaps_previous may start while the kernel ahead of it in the stream still runs. What it
// does before wait_for_previous() may not touch what that one writes, nor write what that one reads; every
// thread calls it before the kernel ends.
#pragma once

namespace tessera::cuda {

// The work ahead in the stream has ended, and what it wrote is seen.
__device__ __forceinline__ void wait_for_previous() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Once all CTAs have said so (or ended), the next kernel may be started, if it was launched to overlap.
__device__ __forceinline__ void let_next_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// For kernels that have nothing to do before.
__device__ __forceinline__ void start_in_order() {
  let_next_start();
  wait_for_previous();
}

}  // namespace tessera::cuda
