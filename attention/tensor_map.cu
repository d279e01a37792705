#include "attention/tensor_map.hpp"

#include <cuda_runtime.h>
#include <fmt/ranges.h>

#include "runtime/core/cuda_check.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {
namespace {

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                                 CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                 CUtensorMapFloatOOBfill);

EncodeTiled find_encoder() {
  constexpr unsigned kFirstVersionWithTensorMaps = 12000;
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                              kFirstVersionWithTensorMaps, cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess || function == nullptr) {
    throw ResourceError(
        "this CUDA driver has no cuTensorMapEncodeTiled; install a driver for CUDA 12.0 or later");
  }
  return reinterpret_cast<EncodeTiled>(function);
}

template <std::size_t kRank>
CUtensorMap encode_map(const TensorMapOf<kRank>& tensor) {
  static const EncodeTiled encode = find_encoder();
  std::array<cuuint32_t, kRank> element_strides;
  element_strides.fill(1);
  CUtensorMap map{};
  const CUresult result = encode(
      &map, tensor.dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      static_cast<cuuint32_t>(kRank), const_cast<void*>(tensor.base), tensor.sizes.data(),
      tensor.strides.data(), tensor.box.data(), element_strides.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw InternalError(
        "cuTensorMapEncodeTiled refused a tensor of {} elements, strides {} bytes, innermost first (code {})",
        fmt::join(tensor.sizes, " × "), fmt::join(tensor.strides, ", "), static_cast<int>(result));
  }
  return map;
}

}  // namespace

CUtensorMap make_tensor_map(const TensorMap3d& tensor) {
  return encode_map(tensor);
}
CUtensorMap make_tensor_map_5d(const TensorMap5d& tensor) {
  return encode_map(tensor);
}

}  // namespace tessera::cuda
