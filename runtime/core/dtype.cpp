#include "runtime/core/dtype.hpp"

#include <cmath>
#include <cstring>

#include "runtime/core/error.hpp"
#include "runtime/core/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/core/dtype.cpp"
#include <hwy/foreach_target.h>

#include "runtime/core/simd_inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {

template <DType kType>
void widen(const std::byte* source, float* target, std::size_t count) {
  const Floats d;
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(load_floats<kType>(source, i), d, target + i);
  for (; i < count; ++i) target[i] = load_float<kType>(source, i);
}

void widen_bfloat16(const std::byte* source, float* target, std::size_t count) {
  widen<DType::kBF16>(source, target, count);
}
void widen_float16(const std::byte* source, float* target, std::size_t count) {
  widen<DType::kF16>(source, target, count);
}

// Round to nearest even on the bits; a NaN is made quiet, since rounding could carry it into infinity.
void narrow_bfloat16(const float* source, std::byte* target, std::size_t count) {
  const Floats d;
  const hn::RebindToUnsigned<Floats> du;
  const hn::RebindToSigned<Floats> di;
  const hn::Rebind<std::uint16_t, Floats> d16;
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const auto bits = hn::BitCast(du, hn::LoadU(d, source + i));
    const auto high = hn::ShiftRight<16>(bits);
    const auto carry = hn::Add(hn::Set(du, 0x7fffu), hn::And(high, hn::Set(du, 1u)));
    const auto rounded = hn::ShiftRight<16>(hn::Add(bits, carry));
    const auto quiet = hn::Or(high, hn::Set(du, 0x40u));
    const auto magnitude = hn::BitCast(di, hn::And(bits, hn::Set(du, 0x7fffffffu)));
    const auto nan = hn::Gt(magnitude, hn::Set(di, 0x7f800000));  // (a comparison of floats is false for NaN)
    const auto chosen = hn::IfThenElse(hn::RebindMask(du, nan), quiet, rounded);
    hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, chosen)), d16, reinterpret_cast<std::uint16_t*>(target) + i);
  }
  for (; i < count; ++i) {
    const std::uint16_t bits = to_bfloat16(source[i]).bits;
    std::memcpy(target + 2 * i, &bits, sizeof bits);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {

HWY_EXPORT(widen_bfloat16);
HWY_EXPORT(widen_float16);
HWY_EXPORT(narrow_bfloat16);

}  // namespace

std::size_t size_of(DType dtype) {
  return dtype == DType::kF32 ? 4 : 2;
}

std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kF16:
      return "f16";
  }
  return "?";
}

DType parse_dtype(std::string_view name) {
  if (name == "f32" || name == "fp32" || name == "float32") return DType::kF32;
  if (name == "bf16" || name == "bfloat16") return DType::kBF16;
  if (name == "f16" || name == "fp16" || name == "float16") return DType::kF16;
  throw UsageError("dtype '{}' is unknown: use f32, bf16 or f16", name);
}

// IEEE 754 binary16: 1 sign, 5 exponent (bias 15), 10 mantissa bits.
float to_float(Float16 value) {
  const std::uint32_t sign = std::uint32_t{value.bits & 0x8000u} << 16;
  const std::uint32_t exponent = (value.bits >> 10) & 0x1fu;
  const std::uint32_t mantissa = value.bits & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);  // subnormal or zero: exact in fp32
  return sign ? -magnitude : magnitude;
}

BFloat16 to_bfloat16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

Float16 to_float16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint16_t sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // rounds past 65504
  if (magnitude < 0x38800000u) {  // below 2^-14: subnormal; nearbyint rounds half to even
    const float scaled = std::nearbyint(std::ldexp(std::bit_cast<float>(magnitude), 24));
    return {static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(scaled))};
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

void convert_to_float(const void* source, DType dtype, float* target, std::size_t count) {
  const auto* bytes = static_cast<const std::byte*>(source);
  switch (dtype) {
    case DType::kF32:
      if (count > 0) std::memcpy(target, source, count * sizeof(float));
      return;
    case DType::kBF16:
      return HWY_DYNAMIC_DISPATCH(widen_bfloat16)(bytes, target, count);
    case DType::kF16:
      return HWY_DYNAMIC_DISPATCH(widen_float16)(bytes, target, count);
  }
}

void convert_from_float(const float* source, DType dtype, void* target, std::size_t count) {
  auto* bytes = static_cast<std::byte*>(target);
  switch (dtype) {
    case DType::kF32:
      if (count > 0) std::memcpy(target, source, count * sizeof(float));
      return;
    case DType::kBF16:
      return HWY_DYNAMIC_DISPATCH(narrow_bfloat16)(source, bytes, count);
    case DType::kF16:
      for (std::size_t i = 0; i < count; ++i) {
        const std::uint16_t bits = to_float16(source[i]).bits;
        std::memcpy(bytes + 2 * i, &bits, sizeof bits);
      }
      return;
  }
}

}  // namespace tessera
#endif  // HWY_ONCE
