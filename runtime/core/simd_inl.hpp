// Vector helpers of the CPU kernels, compiled once for each instruction set (Highway's foreach_target):
// include after hwy/foreach_target.h. Everything here is inline and lives in the namespace of the target.
#if defined(TESSERA_RUNTIME_CORE_SIMD_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_RUNTIME_CORE_SIMD_INL_HPP
#undef TESSERA_RUNTIME_CORE_SIMD_INL_HPP
#else
#define TESSERA_RUNTIME_CORE_SIMD_INL_HPP
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "runtime/core/dtype.hpp"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using FloatVec = hn::Vec<Floats>;
inline constexpr std::size_t kLanes = HWY_LANES(float);

// Elements i … i + kLanes − 1 of an array of kType at any alignment, as floats. Exact.
template <DType kType>
HWY_INLINE FloatVec load_floats(const std::byte* array, std::size_t i) {
  const Floats d;
  if constexpr (kType == DType::kF32) {
    return hn::LoadU(d, reinterpret_cast<const float*>(array) + i);
  } else {
    const hn::Rebind<std::uint16_t, Floats> d16;
    const auto bits = hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(array) + i);
    if constexpr (kType == DType::kBF16) {
      return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(hn::RebindToUnsigned<Floats>(), bits)));
    } else {
      return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, Floats>(), bits));
    }
  }
}

template <DType kType>
HWY_INLINE float load_float(const std::byte* array, std::size_t i) {
  if constexpr (kType == DType::kF32) {
    float value;
    std::memcpy(&value, array + 4 * i, sizeof value);
    return value;
  } else {
    std::uint16_t bits;
    std::memcpy(&bits, array + 2 * i, sizeof bits);
    if constexpr (kType == DType::kBF16) {
      return to_float(BFloat16{bits});
    } else {
      return to_float(Float16{bits});
    }
  }
}

// 2^x to about 1e-7 relative for x ≤ 127; 0 below −126 and for −inf; NaN stays NaN. Polynomial of Cephes'
// exp2f (Moshier 1989) on [−1/2, 1/2].
HWY_INLINE FloatVec exp2_of(FloatVec x) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  // Adding 1.5·2^23 rounds to the nearest integer and leaves it in the low mantissa bits.
  const FloatVec magic = hn::Set(d, 12582912.0f);
  const FloatVec shifted = hn::Add(x, magic);
  const FloatVec r = hn::Sub(x, hn::Sub(shifted, magic));
  FloatVec p = hn::Set(d, 1.535336188319500e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.339887440266574e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 9.618437357674640e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.550332471162809e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 2.402264791363012e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 6.931472028550421e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  const FloatVec power = hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), power);
}

HWY_INLINE float sum_of(FloatVec v) {
  return hn::GetLane(hn::SumOfLanes(Floats(), v));
}

#if HWY_TARGET == HWY_SCALAR
HWY_INLINE void sum_four(const FloatVec (&v)[4], float* out) {
  for (int i = 0; i < 4; ++i) out[i] = sum_of(v[i]);
}
#else
// Adds the upper half to the lower until one 128-bit block is left; its four lanes go to out.
template <std::size_t kCount, class D>
HWY_INLINE void store_block_sum(D d, hn::Vec<D> v, float* out) {
  if constexpr (kCount <= 4) {
    hn::StoreU(v, d, out);
  } else {
    const hn::Half<D> half;
    store_block_sum<kCount / 2>(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), out);
  }
}

// out[i] = the sum of the lanes of v[i], i < 4: two shuffles and an addition a vector instead of a reduction
// each.
HWY_INLINE void sum_four(const FloatVec (&v)[4], float* out) {
  const Floats d;
  const hn::RepartitionToWide<Floats> wide;
  const auto low = hn::Add(hn::InterleaveLower(d, v[0], v[1]), hn::InterleaveUpper(d, v[0], v[1]));
  const auto high = hn::Add(hn::InterleaveLower(d, v[2], v[3]), hn::InterleaveUpper(d, v[2], v[3]));
  const auto a = hn::BitCast(wide, low);
  const auto b = hn::BitCast(wide, high);
  const FloatVec sums = hn::Add(hn::BitCast(d, hn::InterleaveLower(wide, a, b)),
                                hn::BitCast(d, hn::InterleaveUpper(wide, a, b)));
  store_block_sum<kLanes>(d, sums, out);
}
#endif

HWY_INLINE float max_of(FloatVec v) {
  return hn::GetLane(hn::MaxOfLanes(Floats(), v));
}

}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#endif
