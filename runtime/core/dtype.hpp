// Storage types of weights and caches. Arithmetic on the CPU is fp32; these say how values are kept.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace tessera {

enum class DType : std::uint8_t { kF32, kBF16, kF16 };

std::size_t size_of(DType dtype);       // bytes an element
std::string_view name_of(DType dtype);  // "f32", "bf16", "f16": what options and traces say
DType parse_dtype(
    std::string_view name);  // accepts f32|fp32|float32, bf16|bfloat16, f16|fp16|float16; UsageError

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

inline float to_float(BFloat16 value) {
  return std::bit_cast<float>(std::uint32_t{value.bits} << 16);
}
float to_float(Float16 value);
BFloat16 to_bfloat16(float value);  // round to nearest even; NaN stays NaN
Float16 to_float16(float value);    // round to nearest even; overflow to infinity; NaN stays NaN

// source: count elements of dtype, at any alignment; target: count floats. Exact.
void convert_to_float(const void* source, DType dtype, float* target, std::size_t count);
// Rounds to nearest even. target may be at any alignment.
void convert_from_float(const float* source, DType dtype, void* target, std::size_t count);

}  // namespace tessera
