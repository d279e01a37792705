// Checked calls of the CUDA runtime. For .cu files: everybody else uses the owners in cuda_stream.hpp and
// cuda_memory.hpp, which need no CUDA header.
#pragma once

#include <cuda_runtime_api.h>

#include "runtime/core/device.hpp"

namespace tessera::cuda {

// ResourceError where memory or a usable device is missing, else InternalError; the message holds the call,
// its place and CUDA's words for the status.
[[noreturn]] void throw_cuda_error(cudaError_t status, const char* call, const char* file, int line);

inline cudaStream_t native(StreamView stream) {
  return static_cast<cudaStream_t>(stream.native);
}

}  // namespace tessera::cuda

#define CUDA_CHECK(call)                                                            \
  do {                                                                              \
    const cudaError_t tessera_status = (call);                                      \
    if (tessera_status != cudaSuccess) {                                            \
      ::tessera::cuda::throw_cuda_error(tessera_status, #call, __FILE__, __LINE__); \
    }                                                                               \
  } while (false)
