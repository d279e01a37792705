// What the GPU tests share: arrays of the device filled from and read into vectors, random inputs, poison.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "runtime/core/cuda_memory.hpp"
#include "runtime/core/cuda_stream.hpp"
#include "runtime/core/dtype.hpp"

namespace cuda_test {

// A seed that no run repeats, printed where a test fails by doctest's CAPTURE.
inline std::uint64_t fresh_seed() {
  static std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

inline std::vector<float> random_floats(std::size_t count, std::mt19937_64& rng, float low = -1,
                                        float high = 1) {
  std::vector<float> values(count);
  for (float& value : values) value = low + (high - low) * static_cast<float>(rng() >> 40) * 0x1p-24f;
  return values;
}

// Stream and meter of a test, and arrays on the device. Copies block.
class Gpu {
 public:
  Gpu() : stream_(device()) {}
  static tessera::Device device() { return {tessera::DeviceKind::kCuda, 0}; }
  tessera::StreamView stream() const { return stream_.view(); }
  tessera::MemoryMeter& meter() { return meter_; }
  void synchronize() const { stream_.synchronize(); }

  template <typename T>
  tessera::cuda::DeviceBuffer upload(const std::vector<T>& values) {
    tessera::cuda::DeviceBuffer buffer = empty(values.size() * sizeof(T));
    tessera::cuda::copy_to_device(buffer.data(), values.data(), values.size() * sizeof(T), stream());
    synchronize();
    return buffer;
  }
  // Bytes of 0xff: NaN in every float type, −1 in every integer one.
  tessera::cuda::DeviceBuffer poisoned(std::size_t bytes) {
    tessera::cuda::DeviceBuffer buffer = empty(bytes);
    tessera::cuda::fill_bytes(buffer.data(), 0xff, bytes, stream());
    synchronize();
    return buffer;
  }
  template <typename T>
  std::vector<T> download(const tessera::cuda::DeviceBuffer& buffer) {
    std::vector<T> values(buffer.bytes() / sizeof(T));
    tessera::cuda::copy_to_host(values.data(), buffer.data(), values.size() * sizeof(T), stream());
    synchronize();
    return values;
  }

 private:
  tessera::cuda::DeviceBuffer empty(std::size_t bytes) {
    return tessera::cuda::DeviceBuffer(bytes, device(), tessera::MemoryKind::kWorkspace, meter_);
  }

  tessera::MemoryMeter meter_;
  tessera::cuda::CudaStream stream_;
};

// 16-bit patterns of values rounded to nearest even, and back: written here anew so that a fault of the
// library's conversions shows.
inline std::uint16_t bits_of(float value, tessera::DType dtype) {
  if (dtype == tessera::DType::kBF16) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (std::isnan(value)) return 0x7fff;
    return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
  const double magnitude = std::fabs(static_cast<double>(value));
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return 0x7fff;
  if (magnitude >= 65520.0) return sign | 0x7c00;
  if (magnitude < 0x1p-14) return sign | static_cast<std::uint16_t>(std::nearbyint(magnitude * 0x1p24));
  int exponent;
  const double fraction = std::frexp(magnitude, &exponent);                           // in [0.5, 1)
  const auto mantissa = static_cast<std::uint32_t>(std::nearbyint(fraction * 2048));  // 1024 … 2048
  return sign | static_cast<std::uint16_t>(((exponent + 13) << 10) + mantissa);
}

inline float value_of(std::uint16_t bits, tessera::DType dtype) {
  if (dtype == tessera::DType::kBF16) {
    const std::uint32_t wide = std::uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  }
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * static_cast<float>(std::ldexp(mantissa, -24));
  return sign * static_cast<float>(std::ldexp(mantissa + 1024, exponent - 25));
}

inline std::vector<std::uint16_t> rounded(const std::vector<float>& values, tessera::DType dtype) {
  std::vector<std::uint16_t> bits(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) bits[i] = bits_of(values[i], dtype);
  return bits;
}

inline std::vector<float> widened(const std::vector<std::uint16_t>& bits, tessera::DType dtype) {
  std::vector<float> values(bits.size());
  for (std::size_t i = 0; i < bits.size(); ++i) values[i] = value_of(bits[i], dtype);
  return values;
}

// The largest relative error of one rounding.
inline double unit_of(tessera::DType dtype) {
  return dtype == tessera::DType::kBF16 ? 0x1p-8 : dtype == tessera::DType::kF16 ? 0x1p-11 : 0x1p-24;
}

// max |got − want| / allowed, element by element: at most 1 where all is well; infinite where a value that
// should be finite is not, or sizes differ.
inline double worst_ratio(const std::vector<float>& got, const std::vector<double>& want,
                          const std::vector<double>& allowed) {
  if (got.size() != want.size() || allowed.size() != want.size()) return INFINITY;
  double worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double ratio = std::fabs(static_cast<double>(got[i]) - want[i]) / allowed[i];
    if (!(ratio <= worst)) worst = std::isnan(ratio) ? INFINITY : ratio;
  }
  return worst;
}

// What `roundings` to dtype may do to each value, and fp32 arithmetic to sums of size `scale`.
inline std::vector<double> allowed_error(const std::vector<double>& want, tessera::DType dtype,
                                         double roundings, double scale) {
  std::vector<double> allowed(want.size());
  const double tiny = dtype == tessera::DType::kF16 ? 0x1p-25 : 1e-30;
  for (std::size_t i = 0; i < want.size(); ++i) {
    allowed[i] = roundings * (unit_of(dtype) * 1.001 * std::fabs(want[i]) + tiny) + 1e-6 * scale;
  }
  return allowed;
}

inline constexpr std::uint16_t kPoison16 = 0xffff;

}  // namespace cuda_test
