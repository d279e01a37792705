// Linear layers on the device. Needs no CUDA header.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "runtime/core/cuda_memory.hpp"
#include "runtime/core/device.hpp"
#include "runtime/core/dtype.hpp"

namespace tessera::cuda {

// y = x Wᵀ + bias + (accumulate ? y : 0), in fp32. Rounded once; with a bias or where accumulating, the
// library may round the product before they are added, as the reference does. Strides count elements.
struct LinearParams {
  std::int64_t rows = 0;           // T
  std::int64_t inner = 0;          // columns of x and W
  std::int64_t columns = 0;        // of y, rows of W
  DType dtype = DType::kBF16;      // of x, W and bias: bf16 or f16
  const void* x = nullptr;         // (rows, inner)
  std::int64_t x_stride = 0;       // 0: inner
  const void* weight = nullptr;    // (columns, inner)
  std::int64_t weight_stride = 0;  // 0: inner
  const void* bias = nullptr;      // (columns), or null; only where y_dtype is dtype
  void* y = nullptr;               // (rows, columns)
  std::int64_t y_stride = 0;       // 0: columns
  DType y_dtype = DType::kBF16;    // dtype, or f32 (logits)
  bool accumulate = false;
  // Nothing ahead in the stream writes W or bias: with few rows W is then read before the work ahead has
  // ended.
  bool settled_weight = false;
};

// Products with few rows, as decoding has them: bound by the bytes of W, which are read once. Each dot
// product has its own order of summation whatever the rows beside it.
// From three rows on the library is as fast or faster at the shapes of 7B to 72B models (H100).
inline constexpr std::int64_t kFewRows = 2;
bool takes_few_rows(const LinearParams& p);  // few enough, and all aligned for 16-byte accesses
void linear_few_rows(const LinearParams& p, StreamView stream);

// Products with few rows as above, all others through cuBLASLt, in the stream of a pool. What the library
// recommends for a problem is asked once and kept, so that the same call is the same kernel throughout a run.
// Not thread-safe.
class DeviceGemm {
 public:
  explicit DeviceGemm(StreamPool& pool);
  ~DeviceGemm();
  DeviceGemm(const DeviceGemm&) = delete;
  DeviceGemm& operator=(const DeviceGemm&) = delete;

  void linear(const LinearParams& p);
  void linear_by_library(const LinearParams& p);  // whatever the rows

  std::int64_t problems() const;         // distinct ones so far
  static std::string library_version();  // "13.1.0": for `tessera info` and traces

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera::cuda
