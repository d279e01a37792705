#include "runtime/core/device.hpp"

namespace tessera {

CudaInfo query_cuda() {
  CudaInfo info;
  info.problem = "built without CUDA (no nvcc was found)";
  return info;
}

}  // namespace tessera
