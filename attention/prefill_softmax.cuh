// What a consumer warpgroup of the prefill kernel does with scores in registers: masks, running softmax,
// packing as the operand of the next product. Scores are the fragment of wgmma (ptx/wgmma.cuh): a thread
// holds two rows, and the four threads of a quad share them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "attention/ptx/warpgroup.cuh"

namespace tessera::cuda {

// The two rows of a thread.
struct RowPair {
  float top[2];  // largest score seen, unscaled
  float sum[2];  // of this thread's exponentials
};

__device__ __forceinline__ float negative_infinity() {
  return -__int_as_float(0x7F800000);
}

// Keys of a part lie at rows first … first + kRows − 1 of the sequence; a row sees those in [low, high].
template <int kRows>
__device__ __forceinline__ void mask_part(float* scores, int first, const int (&low)[2],
                                          const int (&high)[2]) {
  const int column = 2 * (threadIdx.x % 4);
  const int below[2] = {low[0] - first - column, low[1] - first - column};
  const int above[2] = {high[0] - first - column, high[1] - first - column};
#pragma unroll
  for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int key = 8 * j + e % 2;
      if (key < below[e / 2] || key > above[e / 2]) scores[4 * j + e] = negative_infinity();
    }
  }
}

__device__ __forceinline__ float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFF, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xFFFFFFFF, value, 2));
}
__device__ __forceinline__ float quad_sum(float value) {
  value += __shfl_xor_sync(0xFFFFFFFF, value, 1);
  return value + __shfl_xor_sync(0xFFFFFFFF, value, 2);
}

// Scores to exponentials relative to the running maximum; factor is what earlier sums and outputs must be
// multiplied with. While a maximum grows by less than kSlack (in powers of two) the old one is kept, which is
// exact, since numerator and denominator share it, and saves the multiplication.
template <int kCount>
__device__ __forceinline__ void softmax_step(float (&scores)[kCount], RowPair& rows, float (&factor)[2],
                                             float scale_log2, float slack) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float largest = fmaxf(scores[2 * r], scores[2 * r + 1]);
#pragma unroll
    for (int i = 4; i < kCount; i += 4) {
      largest = fmaxf(largest, fmaxf(scores[i + 2 * r], scores[i + 2 * r + 1]));
    }
    largest = quad_max(largest);
    const float old = rows.top[r];
    // Not so for −inf − (−inf): a row that has seen no key keeps −inf.
    const float top = (largest - old) * scale_log2 > slack ? largest : old;
    const float offset = top == negative_infinity() ? 0.0F : top * scale_log2;
    factor[r] = top == old ? 1.0F : ptx::exp2_approx(fmaf(old, scale_log2, -offset));
    rows.top[r] = top;
    float sum = rows.sum[r] * factor[r];
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float exponent = fmaf(scores[i + 2 * r + e], scale_log2, -offset);
        const float value = ptx::exp2_approx(exponent);
        scores[i + 2 * r + e] = value;
        sum += value;
      }
    }
    rows.sum[r] = sum;
  }
}

template <typename T>
__device__ __forceinline__ std::uint32_t pack_pair(float low, float high) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  }
}

template <typename T, int kCount>
__device__ __forceinline__ void pack_fragment(const float (&values)[kCount],
                                              std::uint32_t (&packed)[kCount / 2]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) packed[i] = pack_pair<T>(values[2 * i], values[2 * i + 1]);
}

template <int kCount>
__device__ __forceinline__ void scale_rows(float (&values)[kCount], const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] *= factor[i % 4 / 2];
}

// Words of four neighbouring 8-column groups, one each in words[0 … 3] of every thread of a quad, exchanged
// so that thread q holds the whole group q (8 elements, 16 bytes).
__device__ __forceinline__ uint4 exchange_in_quad(const std::uint32_t (&words)[4]) {
  const bool odd = threadIdx.x % 2 != 0;
  const bool upper = threadIdx.x % 4 >= 2;
  std::uint32_t low[2];   // words of threads 0, 1 or 2, 3 of groups 0 | 1
  std::uint32_t high[2];  // the same of groups 2 | 3
  const std::uint32_t a = __shfl_xor_sync(0xFFFFFFFF, odd ? words[0] : words[1], 1);
  const std::uint32_t b = __shfl_xor_sync(0xFFFFFFFF, odd ? words[2] : words[3], 1);
  low[0] = odd ? a : words[0];
  low[1] = odd ? words[1] : a;
  high[0] = odd ? b : words[2];
  high[1] = odd ? words[3] : b;
  const std::uint32_t c = __shfl_xor_sync(0xFFFFFFFF, upper ? low[0] : high[0], 2);
  const std::uint32_t d = __shfl_xor_sync(0xFFFFFFFF, upper ? low[1] : high[1], 2);
  return upper ? make_uint4(c, d, high[0], high[1]) : make_uint4(low[0], low[1], c, d);
}

}  // namespace tessera::cuda
