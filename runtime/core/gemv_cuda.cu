// y = x Wᵀ for a few rows of x. A warp, or several that share the inner dimension, computes four columns of
// y: lanes run along four rows of W with 16-byte loads, several of them in flight, and each weight meets all
// rows of x.
#include "runtime/core/cuda_element.cuh"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/cuda_overlap.cuh"
#include "runtime/core/device_gemm.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {
namespace {

constexpr int kWarps = 8;                 // of a CTA
constexpr int kColumns = 4;               // of a group of warps
constexpr int kStep = 32 * kVectorWidth;  // elements of a row that a warp takes at once
constexpr std::int64_t kEnoughWarps = 132 * 16;

struct GemvArguments {
  LinearParams p;
  int warps;  // of a group: 1, 2, 4 or 8
};

// Weights are used once: they should leave no trace in L1, which holds x.
__device__ __forceinline__ uint4 load_streaming(const void* p) {
  return __ldcs(static_cast<const uint4*>(p));
}

template <typename T, int kRows>
__device__ __forceinline__ void multiply(float (&sums)[kRows][kColumns], const uint4 (&weights)[kColumns],
                                         const T* x, std::int64_t x_stride) {
  float w[kColumns][kVectorWidth];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) widen<T>(weights[c], w[c]);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float values[kVectorWidth];
    load_vector(x + r * x_stride, values);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int j = 0; j < kVectorWidth; ++j) sums[r][c] = fmaf(w[c][j], values[j], sums[r][c]);
    }
  }
}

template <typename T>
__device__ __forceinline__ void write(const LinearParams& p, int row, std::int64_t column, float sum) {
  if (p.bias != nullptr) sum += to_f32(static_cast<const T*>(p.bias)[column]);
  const std::int64_t at = row * p.y_stride + column;
  if (p.y_dtype == DType::kF32) {
    float* y = static_cast<float*>(p.y) + at;
    *y = p.accumulate ? *y + sum : sum;
  } else {
    T* y = static_cast<T*>(p.y) + at;
    *y = from_f32<T>(p.accumulate ? to_f32(*y) + sum : sum);
  }
}

template <typename T, int kRows>
__global__ void __launch_bounds__(32 * kWarps) gemv_kernel(const GemvArguments a) {
  __shared__ float shared[kWarps][kRows * kColumns];
  const LinearParams& p = a.p;
  let_next_start();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int part = warp % a.warps;  // of the inner dimension
  const std::int64_t group = (blockIdx.x * std::int64_t{kWarps} + warp) / a.warps;
  const std::int64_t column = group * kColumns;

  float sums[kRows][kColumns] = {};
  if (column < p.columns) {
    const T* rows[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {  // past the last column the last one again: read, not written
      rows[c] = static_cast<const T*>(p.weight) + min(column + c, p.columns - 1) * p.weight_stride;
    }
    const int step = kStep * a.warps;
    const int inner = static_cast<int>(p.inner);
    int at = part * kStep + lane * kVectorWidth;
    uint4 first[kColumns] = {}, second[kColumns] = {};
    const auto load = [&] {
      if (at < inner) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) first[c] = load_streaming(rows[c] + at);
      }
      if (at + step < inner) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) second[c] = load_streaming(rows[c] + at + step);
      }
    };
    if (!p.settled_weight) wait_for_previous();
    load();
    wait_for_previous();
    const T* x = static_cast<const T*>(p.x);
    while (at < inner) {
      multiply<T, kRows>(sums, first, x + at, p.x_stride);
      if (at + step < inner) multiply<T, kRows>(sums, second, x + at + step, p.x_stride);
      at += 2 * step;
      load();
    }
  }
  wait_for_previous();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) {
        sums[r][c] += __shfl_xor_sync(0xffffffffu, sums[r][c], distance);
      }
      if (lane == 0) shared[warp][r * kColumns + c] = sums[r][c];
    }
  }
  __syncthreads();
  // One thread a result: the first lanes of a group's first warp.
  if (part != 0 || lane >= kRows * kColumns) return;
  const int row = lane / kColumns;
  const std::int64_t target = column + lane % kColumns;
  if (target >= p.columns) return;
  float sum = 0;
  for (int i = 0; i < a.warps; ++i) sum += shared[warp + i][lane];
  write<T>(p, row, target, sum);
}

template <typename T, int kRows>
void run(const LinearParams& p, StreamView stream) {
  const std::int64_t groups = ceil_div(p.columns, kColumns);
  // More warps share a row of W where columns alone would leave the device short of loads in flight, as long
  // as each still has two steps to take.
  int warps = 1;
  while (warps < kWarps && groups * warps < kEnoughWarps && p.inner >= 4 * warps * kStep) warps *= 2;
  const auto blocks = static_cast<unsigned>(ceil_div(groups * warps, kWarps));
  launch(gemv_kernel<T, kRows>, {.grid = dim3(blocks), .block = dim3(32 * kWarps), .overlaps_previous = true},
         stream, GemvArguments{p, warps});
}

}  // namespace

bool takes_few_rows(const LinearParams& p) {
  return p.rows <= kFewRows && p.inner % kVectorWidth == 0 && vector_aligned(p.x, p.x_stride) &&
         vector_aligned(p.weight, p.weight_stride);
}

void linear_few_rows(const LinearParams& params, StreamView stream) {
  LinearParams p = params;
  if (p.rows == 0 || p.columns == 0) return;
  TESSERA_CHECK(takes_few_rows(p) && p.inner > 0 && p.inner < (std::int64_t{1} << 30));
  if (p.x_stride == 0) p.x_stride = p.inner;
  if (p.weight_stride == 0) p.weight_stride = p.inner;
  if (p.y_stride == 0) p.y_stride = p.columns;
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    switch (p.rows) {
      case 1:
        return run<T, 1>(p, stream);
      case 2:
        return run<T, 2>(p, stream);
      case 3:
        return run<T, 3>(p, stream);
      default:
        return run<T, 4>(p, stream);
    }
  });
}

}  // namespace tessera::cuda
