// Linear layers: y = x Wᵀ + bias, W stored [out, in] in its own dtype and converted tile by tile.
#pragma once

#include <cstdint>

#include "runtime/core/device.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera {

struct LinearParams {
  std::int64_t rows = 0;        // T
  const float* x = nullptr;     // (T, in), rows x_stride floats apart
  std::int64_t x_stride = 0;    // 0: in
  MatrixView weight;            // (out, in), any alignment
  const float* bias = nullptr;  // (out), or null
  float* y = nullptr;           // (T, out), rows y_stride floats apart
  std::int64_t y_stride = 0;    // 0: out
  StreamView stream;
};
// fp32 accumulation. Few rows stream the weights once (bandwidth-bound); many rows go through BLAS by tiles.
void linear(const LinearParams& p);

}  // namespace tessera
