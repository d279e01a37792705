// Tensor maps for bulk copies, made on the host. The driver's encoder is found at run time, so that the
// program links without libcuda and starts on machines without a driver.
#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>

#include "runtime/core/dtype.hpp"

namespace tessera::cuda {

// A tensor of 2-byte elements in global memory, innermost dimension first and contiguous, and the box that
// one copy moves. The innermost side of the box is 64 elements (128 bytes, what the swizzle spans).
template <std::size_t kRank>
struct TensorMapOf {
  const void* base = nullptr;                      // aligned to 16 bytes
  DType dtype = DType::kBF16;                      // kBF16 or kF16
  std::array<std::uint64_t, kRank> sizes{};        // elements
  std::array<std::uint64_t, kRank - 1> strides{};  // bytes, from the second dimension on: multiples of 16
  std::array<std::uint32_t, kRank> box{};
};
using TensorMap3d = TensorMapOf<3>;
using TensorMap5d = TensorMapOf<5>;

// 128-byte swizzle, zeros outside of the tensor.
CUtensorMap make_tensor_map(const TensorMap3d& tensor);
CUtensorMap make_tensor_map_5d(const TensorMap5d& tensor);

}  // namespace tessera::cuda
