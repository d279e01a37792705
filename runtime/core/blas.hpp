// The BLAS library behind large matrix products on the CPU.
#pragma once

#include <cstdint>
#include <string>

namespace tessera {

// "OpenBLAS 0.3.21 (SkylakeX kernels)": for `tessera info`.
std::string blas_description();

// y = x Wᵀ + (accumulate ? y : 0) in the calling thread alone, so that callers split work over their own
// threads. x (rows, inner), W (columns, inner), y (rows, columns), rows *_stride floats apart.
struct BlasProduct {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t inner = 0;
  const float* x = nullptr;
  std::int64_t x_stride = 0;
  const float* weight = nullptr;
  std::int64_t weight_stride = 0;
  float* y = nullptr;
  std::int64_t y_stride = 0;
  bool accumulate = false;
};
void multiply_in_this_thread(const BlasProduct& p);

}  // namespace tessera
