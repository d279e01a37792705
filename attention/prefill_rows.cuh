// The end of a query block, which both prefill kernels share.
#pragma once

#include <cstdint>

#include "attention/prefill_softmax.cuh"
#include "attention/prefill_tile.cuh"

namespace tessera::cuda {

// Rows of the output and their log-sum-exp, from the accumulators of 64 rows in four warps: tokens
// first_token … first_token + 63 but for those from `end` on.
template <typename T, int kHeadDim>
__device__ __forceinline__ void store_rows(float (&out)[kHeadDim / 2], const RowPair& rows, int head,
                                           int first_token, int end, const PrefillArguments& p) {
  const int lane = threadIdx.x % 32;
  const int token = first_token + threadIdx.x % kWarpgroup / 32 * 16 + lane / 4;
  float inverse[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = quad_sum(rows.sum[r]);
    const bool empty = rows.top[r] == negative_infinity();
    inverse[r] = empty ? 0.0F : 1.0F / sum;
    if (p.lse != nullptr && lane % 4 == 0 && token + 8 * r < end) {
      p.lse[static_cast<std::int64_t>(token + 8 * r) * p.heads + head] =
          empty ? negative_infinity() : fmaf(rows.top[r], p.scale, logf(sum));
    }
  }
  scale_rows(out, inverse);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    T* row = static_cast<T*>(p.out) + (static_cast<std::int64_t>(token + 8 * r) * p.heads + head) * kHeadDim;
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; j += 4) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words[i] = pack_pair<T>(out[4 * (j + i) + 2 * r], out[4 * (j + i) + 2 * r + 1]);
      }
      const uint4 chunk = exchange_in_quad(words);
      if (token + 8 * r < end) *reinterpret_cast<uint4*>(row + 8 * (j + lane % 4)) = chunk;
    }
  }
}

}  // namespace tessera::cuda
