// Kernels that start before their predecessor on the stream has ended (PTX ISA, griddepcontrol; sm_90). A
// kernel launched with overlaps_previous waits here before it touches what earlier kernels wrote, and every
// thread of it waits before it ends, so that "the kernel before has ended" holds for the whole chain.
#pragma once

namespace tessera::cuda::ptx {

__device__ __forceinline__ void wait_for_previous_kernel() {
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
}
// When all CTAs have said so or ended, the next kernel may start up to its own wait.
__device__ __forceinline__ void let_next_kernel_start() {
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
}

}  // namespace tessera::cuda::ptx
