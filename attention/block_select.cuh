// What the choices of blocks on the GPU share (block_select_cuda.hpp): means of rows, the order of scores,
// and where each list begins, which is known beforehand.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>

#include "attention/block_select_cuda.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {

inline std::int64_t kept_blocks(const BlockSelectProblem& problem) {
  constexpr std::int64_t kForcedBlocks = 3;
  return std::max(problem.budget, kForcedBlocks);
}

__device__ __forceinline__ float2 widen(__nv_bfloat162 pair) {
  return __bfloat1622float2(pair);
}
__device__ __forceinline__ float2 widen(__half2 pair) {
  return __half22float2(pair);
}

// Rows added in order, in fp32: two channels a thread. row_of(i): where the channels of row i are.
template <typename Pair, class RowOf>
__device__ __forceinline__ float2 mean_of_rows(int rows, const RowOf& row_of) {
  float2 sum = {0, 0};
#pragma unroll 16
  for (int row = 0; row < rows; ++row) {
    const float2 value = widen(__ldg(reinterpret_cast<const Pair*>(row_of(row))));
    sum.x += value.x;
    sum.y += value.y;
  }
  const float count = static_cast<float>(rows);
  return {__fdiv_rn(sum.x, count), __fdiv_rn(sum.y, count)};
}

// In the order of ordered_bits in attention/top_units.hpp, as unsigned numbers.
__device__ __forceinline__ std::uint32_t ordered(float value) {
  const std::int32_t bits = __float_as_int(value + 0.0F);
  return static_cast<std::uint32_t>(bits ^ (bits >> 31 & 0x7FFFFFFF)) ^ 0x80000000U;
}

// Entries that name one block of keys: one, for half a block of the cache too.
__host__ __device__ __forceinline__ std::int64_t entries_a_block(std::int64_t edge) {
  return edge < kBlockTokens ? 1 : edge / kBlockTokens;
}
// Entries of the rows before `row` of a head.
__host__ __device__ __forceinline__ std::int64_t entries_before(std::int64_t row, std::int64_t budget,
                                                                std::int64_t edge) {
  const std::int64_t growing = row < budget ? row : budget;
  return (growing * (growing + 1) / 2 + (row - growing) * budget) * entries_a_block(edge);
}
// Of a head: the last block of keys may be missing from the last row.
__host__ __device__ __forceinline__ std::int64_t entries_a_head(const BlockSelectProblem& p,
                                                                std::int64_t budget) {
  const std::int64_t missing =
      p.edge < kBlockTokens ? 0 : p.rows() * (p.edge / kBlockTokens) - ceil_div(p.tokens, kBlockTokens);
  return entries_before(p.rows(), budget, p.edge) - missing;
}

// Edges of 16 and 32: small_block_select_cuda.cu.
std::size_t small_block_workspace(const BlockSelectProblem& problem);
void select_small_blocks(const DeviceBlockSelectParams& p);

}  // namespace tessera::cuda
