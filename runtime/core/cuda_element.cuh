// Element types of activations on the device: 16-byte vectors of eight, widened to fp32 and rounded back.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "runtime/core/dtype.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {

inline constexpr int kVectorWidth = 8;  // 16-bit elements in 16 bytes

using BF16 = __nv_bfloat16;
using F16 = __half;

template <typename T>
__device__ __forceinline__ float to_f32(T value) {
  return static_cast<float>(value);
}

template <typename T>
__device__ __forceinline__ T from_f32(float value);
template <>
__device__ __forceinline__ float from_f32<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ BF16 from_f32<BF16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ F16 from_f32<F16>(float value) {
  return __float2half_rn(value);
}

// The value that T keeps of an fp32 number.
template <typename T>
__device__ __forceinline__ float rounded(float value) {
  return to_f32(from_f32<T>(value));
}

template <typename T>
__device__ __forceinline__ float2 widen_pair(std::uint32_t bits);
template <>
__device__ __forceinline__ float2 widen_pair<BF16>(std::uint32_t bits) {
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
}
template <>
__device__ __forceinline__ float2 widen_pair<F16>(std::uint32_t bits) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}

template <typename T>
__device__ __forceinline__ std::uint32_t narrow_pair(float low, float high);
template <>
__device__ __forceinline__ std::uint32_t narrow_pair<BF16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ std::uint32_t narrow_pair<F16>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

template <typename T>
__device__ __forceinline__ void widen(const uint4& bits, float (&values)[kVectorWidth]) {
  const std::uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = widen_pair<T>(words[i]);
    values[2 * i] = pair.x;
    values[2 * i + 1] = pair.y;
  }
}

template <typename T>
__device__ __forceinline__ uint4 narrow(const float (&values)[kVectorWidth]) {
  return {narrow_pair<T>(values[0], values[1]), narrow_pair<T>(values[2], values[3]),
          narrow_pair<T>(values[4], values[5]), narrow_pair<T>(values[6], values[7])};
}

// p: 16-byte aligned.
template <typename T>
__device__ __forceinline__ uint4 load_bits(const T* p) {
  return *reinterpret_cast<const uint4*>(p);
}
template <typename T>
__device__ __forceinline__ void load_vector(const T* p, float (&values)[kVectorWidth]) {
  widen<T>(load_bits(p), values);
}
template <typename T>
__device__ __forceinline__ void store_vector(T* p, const float (&values)[kVectorWidth]) {
  *reinterpret_cast<uint4*>(p) = narrow<T>(values);
}
__device__ __forceinline__ void load_floats(const float* p, float (&values)[kVectorWidth]) {
  const float4 a = reinterpret_cast<const float4*>(p)[0];
  const float4 b = reinterpret_cast<const float4*>(p)[1];
  values[0] = a.x, values[1] = a.y, values[2] = a.z, values[3] = a.w;
  values[4] = b.x, values[5] = b.y, values[6] = b.z, values[7] = b.w;
}

// May p, and what lies multiples of `stride` elements behind it, be read by vectors of eight 16-bit elements?
inline bool vector_aligned(const void* p, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(p) % 16 == 0 && stride % kVectorWidth == 0;
}

// Calls work with a value of the device type of a 16-bit dtype: with_element(dtype, [&](auto element) {
// using T = decltype(element); … }).
template <typename Work>
void with_element(DType dtype, Work&& work) {
  switch (dtype) {
    case DType::kBF16:
      return work(BF16());
    case DType::kF16:
      return work(F16());
    default:
      throw InternalError("a kernel of the device takes bf16 or f16");
  }
}

// Likewise with f32.
template <typename Work>
void with_any_element(DType dtype, Work&& work) {
  if (dtype == DType::kF32) return work(float());
  with_element(dtype, work);
}

}  // namespace tessera::cuda
