// RMS norms: one CTA a row. The row is read once and stays in registers where it can be read by vectors.
#include <algorithm>

#include "runtime/core/cuda_element.cuh"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/cuda_overlap.cuh"
#include "runtime/core/device_ops.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {
namespace {

constexpr int kMaxThreads = 1024;
// Of a CTA whose threads hold so many vectors, so that they stay in registers.
constexpr int max_threads(int vectors) {
  return vectors > 2 ? 512 : kMaxThreads;
}
constexpr int kMaxVectors = 4;           // of a thread
constexpr std::int64_t kManyRows = 264;  // two CTAs a multiprocessor: from here on small CTAs fill the device

template <typename T>
struct NormArguments {
  std::int64_t columns;
  const T* x;
  std::int64_t x_stride;
  const T* post_weight;  // null: none
  T* residual;           // null: x is normed itself
  const T* weight;       // null: no norm at the end
  float weight_offset;
  float eps;
  T* y;
  std::int64_t y_stride;
};

// The sum over the CTA, in every thread. partial: 32 floats; free to be used again after the next barrier.
__device__ float sum_of_block(float value, float* partial) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) partial[warp] = value;
  __syncthreads();
  const int warps = blockDim.x / 32;
  value = threadIdx.x % 32 < warps ? partial[threadIdx.x % 32] : 0.0f;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

__device__ __forceinline__ float inverse_root(float squares, std::int64_t columns, float eps) {
  return 1.0f / sqrtf(squares / static_cast<float>(columns) + eps);
}

// What is stored of value · factor · (weight + offset): see RmsNormParams on rounding.
template <typename T>
__device__ __forceinline__ float weighted(float value, float factor, float weight, float offset) {
  if (offset == 0.0f) return rounded<T>(rounded<T>(value * factor) * weight);
  return rounded<T>(value * factor * (weight + offset));
}

// Vectors threadIdx.x, + blockDim.x, … of the row: at most kVectors a thread. kAdds: there is a residual.
template <typename T, int kVectors, bool kAdds>
__global__ void __launch_bounds__(max_threads(kVectors)) norm_rows(const NormArguments<T> p) {
  __shared__ float partial[2][32];
  start_in_order();
  const std::int64_t row = blockIdx.x;
  const int vectors = static_cast<int>(p.columns / kVectorWidth);
  const T* x = p.x + row * p.x_stride;
  T* residual = p.residual + (kAdds ? row * p.columns : 0);

  float values[kVectors][kVectorWidth];
  uint4 weights[kVectors];
  [[maybe_unused]] uint4 sums[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = (threadIdx.x + i * blockDim.x) * kVectorWidth;
    weights[i] = uint4{0, 0, 0, 0};
    if constexpr (kAdds) sums[i] = uint4{0, 0, 0, 0};
    uint4 bits = uint4{0, 0, 0, 0};
    if (at < vectors * kVectorWidth) {
      bits = load_bits(x + at);
      if constexpr (kAdds) sums[i] = load_bits(residual + at);
      if (p.weight != nullptr) weights[i] = load_bits(p.weight + at);
    }
    widen<T>(bits, values[i]);
  }

  if (kAdds && p.post_weight != nullptr) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
#pragma unroll
      for (int j = 0; j < kVectorWidth; ++j) squares = fmaf(values[i][j], values[i][j], squares);
    }
    const float factor = inverse_root(sum_of_block(squares, partial[0]), p.columns, p.eps);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int at = (threadIdx.x + i * blockDim.x) * kVectorWidth;
      if (at >= vectors * kVectorWidth) continue;
      float post[kVectorWidth];
      load_vector(p.post_weight + at, post);
#pragma unroll
      for (int j = 0; j < kVectorWidth; ++j) {
        values[i][j] = weighted<T>(values[i][j], factor, post[j], p.weight_offset);
      }
    }
  }

  if constexpr (kAdds) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int at = (threadIdx.x + i * blockDim.x) * kVectorWidth;
      float sum[kVectorWidth];
      widen<T>(sums[i], sum);
#pragma unroll
      for (int j = 0; j < kVectorWidth; ++j) values[i][j] = rounded<T>(sum[j] + values[i][j]);
      if (at < vectors * kVectorWidth) store_vector(residual + at, values[i]);
    }
  }
  if (p.weight == nullptr) return;

  float squares = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
#pragma unroll
    for (int j = 0; j < kVectorWidth; ++j) squares = fmaf(values[i][j], values[i][j], squares);
  }
  const float factor = inverse_root(sum_of_block(squares, partial[1]), p.columns, p.eps);
  T* y = p.y + row * p.y_stride;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = (threadIdx.x + i * blockDim.x) * kVectorWidth;
    if (at >= vectors * kVectorWidth) continue;
    float weight[kVectorWidth];
    widen<T>(weights[i], weight);
#pragma unroll
    for (int j = 0; j < kVectorWidth; ++j) {
      values[i][j] = weighted<T>(values[i][j], factor, weight[j], p.weight_offset);
    }
    store_vector(y + at, values[i]);
  }
}

// Rows of any length and alignment, element by element; a thread meets the same elements in every pass.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads) norm_unaligned_rows(const NormArguments<T> p) {
  __shared__ float partial[2][32];
  start_in_order();
  const std::int64_t row = blockIdx.x;
  const T* x = p.x + row * p.x_stride;
  T* residual = p.residual == nullptr ? nullptr : p.residual + row * p.columns;
  float post_factor = 0;
  if (p.post_weight != nullptr) {
    float squares = 0;
    for (std::int64_t i = threadIdx.x; i < p.columns; i += blockDim.x) {
      squares = fmaf(to_f32(x[i]), to_f32(x[i]), squares);
    }
    post_factor = inverse_root(sum_of_block(squares, partial[0]), p.columns, p.eps);
  }
  float squares = 0;
  for (std::int64_t i = threadIdx.x; i < p.columns; i += blockDim.x) {
    float value = to_f32(x[i]);
    if (p.post_weight != nullptr) {
      value = weighted<T>(value, post_factor, to_f32(p.post_weight[i]), p.weight_offset);
    }
    if (residual != nullptr) {
      value = rounded<T>(to_f32(residual[i]) + value);
      residual[i] = from_f32<T>(value);
    }
    squares = fmaf(value, value, squares);
  }
  if (p.weight == nullptr) return;
  const float factor = inverse_root(sum_of_block(squares, partial[1]), p.columns, p.eps);
  const T* normed = residual == nullptr ? x : residual;
  T* y = p.y + row * p.y_stride;
  for (std::int64_t i = threadIdx.x; i < p.columns; i += blockDim.x) {
    y[i] = from_f32<T>(weighted<T>(to_f32(normed[i]), factor, to_f32(p.weight[i]), p.weight_offset));
  }
}

template <typename T>
void norm(const NormArguments<T>& p, std::int64_t rows, StreamView stream) {
  const dim3 grid(static_cast<unsigned>(rows));
  const std::int64_t columns = p.columns;
  const bool aligned = columns % kVectorWidth == 0 && vector_aligned(p.x, p.x_stride) &&
                       vector_aligned(p.residual, 0) && vector_aligned(p.post_weight, 0) &&
                       vector_aligned(p.weight, 0) && vector_aligned(p.y, p.y_stride);
  if (!aligned || columns > max_threads(kMaxVectors) * kMaxVectors * kVectorWidth) {
    launch(norm_unaligned_rows<T>, {.grid = grid, .block = dim3(256), .overlaps_previous = true}, stream, p);
    return;
  }
  // Few rows: as many threads as there are vectors, for latency. Many: more vectors a thread, for loads in
  // flight.
  const std::int64_t vectors = columns / kVectorWidth;
  const std::int64_t wanted = rows < kManyRows ? vectors : ceil_div(vectors, kMaxVectors);
  const int threads = static_cast<int>(std::clamp<std::int64_t>(ceil_div(wanted, 32) * 32, 32, kMaxThreads));
  const std::int64_t each = ceil_div(vectors, threads);
  const LaunchShape shape = {
      .grid = grid, .block = dim3(static_cast<unsigned>(threads)), .overlaps_previous = true};
  const auto start = [&]<bool kAdds>() {
    if (each == 1) return launch(norm_rows<T, 1, kAdds>, shape, stream, p);
    if (each == 2) return launch(norm_rows<T, 2, kAdds>, shape, stream, p);
    return launch(norm_rows<T, kMaxVectors, kAdds>, shape, stream, p);
  };
  return p.residual == nullptr ? start.template operator()<false>() : start.template operator()<true>();
}

}  // namespace

void rms_norm(const RmsNormParams& p) {
  if (p.columns == 0) return;
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    NormArguments<T> arguments = {};
    arguments.columns = p.columns;
    arguments.x = static_cast<const T*>(p.x);
    arguments.x_stride = p.x_stride == 0 ? p.columns : p.x_stride;
    arguments.weight = static_cast<const T*>(p.weight);
    arguments.weight_offset = p.weight_offset;
    arguments.eps = p.eps;
    arguments.y = static_cast<T*>(p.y);
    arguments.y_stride = p.y_stride == 0 ? p.columns : p.y_stride;
    norm(arguments, p.rows, p.stream);
  });
}

void add_norm(const AddNormParams& p) {
  if (p.columns == 0) return;
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    NormArguments<T> arguments = {};
    arguments.columns = p.columns;
    arguments.x = static_cast<const T*>(p.x);
    arguments.x_stride = p.columns;
    arguments.post_weight = static_cast<const T*>(p.post_weight);
    arguments.residual = static_cast<T*>(p.residual);
    arguments.weight = static_cast<const T*>(p.weight);
    arguments.weight_offset = p.weight_offset;
    arguments.eps = p.eps;
    arguments.y = static_cast<T*>(p.y);
    arguments.y_stride = p.columns;
    norm(arguments, p.rows, p.stream);
  });
}

}  // namespace tessera::cuda
