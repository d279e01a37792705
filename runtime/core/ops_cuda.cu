// Elementwise operations, embedding rows, argmax and conversions: all bound by memory.
#include <algorithm>
#include <limits>

#include "runtime/core/cuda_element.cuh"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/cuda_memory.hpp"
#include "runtime/core/cuda_overlap.cuh"
#include "runtime/core/device_ops.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostBlocks = 132 * 16;  // of a grid-stride loop

dim3 grid_of(std::int64_t threads) {
  return dim3(static_cast<unsigned>(std::min(ceil_div(threads, kThreads), kMostBlocks)));
}

// ---- gate · up
// ----------------------------------------------------------------------------------------------

// gelu by its tanh form (Hendrycks & Gimpel 2016): x/2 · (1 + tanh u) = x · sigmoid(2u), u = √(2/π)(x +
// 0.044715 x³).
template <Activation kActivation>
__device__ __forceinline__ float activate(float x) {
  const float z = kActivation == Activation::kSilu ? x : 1.5957691216057308f * fmaf(0.044715f * x * x, x, x);
  // Past 2^126 the quick division gives 0, which is what x over so large a number rounds to.
  return __fdividef(x, 1.0f + __expf(-z));
}

template <typename T, Activation kActivation, int kVectors>
__global__ void __launch_bounds__(kThreads) activate_vectors(const GatedActivationParams p) {
  start_in_order();
  const std::int64_t row = blockIdx.x;
  const T* gate = static_cast<const T*>(p.gate) + row * p.in_stride;
  const T* up = static_cast<const T*>(p.up) + row * p.in_stride;
  T* y = static_cast<T*>(p.y) + row * p.y_stride;
  uint4 gates[kVectors], ups[kVectors];
  const std::int64_t begin = (blockIdx.y * std::int64_t{kThreads} * kVectors + threadIdx.x) * kVectorWidth;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const std::int64_t at = begin + i * kThreads * kVectorWidth;
    if (at < p.columns) gates[i] = load_bits(gate + at), ups[i] = load_bits(up + at);
  }
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const std::int64_t at = begin + i * kThreads * kVectorWidth;
    if (at >= p.columns) continue;
    float g[kVectorWidth], u[kVectorWidth];
    widen<T>(gates[i], g);
    widen<T>(ups[i], u);
#pragma unroll
    for (int j = 0; j < kVectorWidth; ++j) g[j] = activate<kActivation>(g[j]) * u[j];
    store_vector(y + at, g);
  }
}

template <typename T, Activation kActivation>
__global__ void __launch_bounds__(kThreads) activate_elements(const GatedActivationParams p) {
  start_in_order();
  const std::int64_t row = blockIdx.x;
  const std::int64_t at = blockIdx.y * std::int64_t{kThreads} + threadIdx.x;
  if (at >= p.columns) return;
  const float gate = to_f32(static_cast<const T*>(p.gate)[row * p.in_stride + at]);
  const float up = to_f32(static_cast<const T*>(p.up)[row * p.in_stride + at]);
  static_cast<T*>(p.y)[row * p.y_stride + at] = from_f32<T>(activate<kActivation>(gate) * up);
}

template <typename T, Activation kActivation>
void activate_rows(const GatedActivationParams& p) {
  constexpr int kVectors = 2;
  const bool aligned = p.columns % kVectorWidth == 0 && vector_aligned(p.gate, p.in_stride) &&
                       vector_aligned(p.up, p.in_stride) && vector_aligned(p.y, p.y_stride);
  const std::int64_t block_columns = aligned ? std::int64_t{kThreads} * kVectors * kVectorWidth : kThreads;
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>(p.rows), static_cast<unsigned>(ceil_div(p.columns, block_columns))),
      .block = dim3(kThreads),
      .overlaps_previous = true};
  if (aligned) {
    launch(activate_vectors<T, kActivation, kVectors>, shape, p.stream, p);
  } else {
    launch(activate_elements<T, kActivation>, shape, p.stream, p);
  }
}

// ---- embedding
// ----------------------------------------------------------------------------------------------

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) embed_kernel(const EmbedParams p) {
  start_in_order();
  const std::int64_t t = blockIdx.x;
  const std::int64_t row = p.tokens[t] - p.first_row;
  const bool held = row >= 0 && row < p.rows;
  const T* source = static_cast<const T*>(p.table) + (held ? row * p.columns : 0);
  T* out = static_cast<T*>(p.out) + t * p.columns;
  if constexpr (kAligned) {
    for (std::int64_t at = threadIdx.x * kVectorWidth; at < p.columns; at += kThreads * kVectorWidth) {
      float values[kVectorWidth] = {};
      if (held) load_vector(source + at, values);
#pragma unroll
      for (int j = 0; j < kVectorWidth; ++j) values[j] *= p.scale;
      store_vector(out + at, values);
    }
  } else {
    for (std::int64_t at = threadIdx.x; at < p.columns; at += kThreads) {
      out[at] = from_f32<T>(held ? to_f32(source[at]) * p.scale : 0.0f);
    }
  }
}

// ---- argmax
// -------------------------------------------------------------------------------------------------

// A value and its column as one integer, the larger the better: order of the value first, then the lower
// column. NaN beats everything; zeros of both signs are equal.
constexpr std::uint32_t kNanOrder = 0xffffffffu;

__device__ __forceinline__ std::uint64_t key_of(float value, std::uint32_t column) {
  const std::uint32_t bits = __float_as_uint(value + 0.0f);
  std::uint32_t order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  if (value != value) order = kNanOrder;
  return std::uint64_t{order} << 32 | (0xffffffffu - column);
}

template <typename T>
__device__ __forceinline__ std::uint64_t best_of_vector(const T* p, std::uint32_t column) {
  float values[kVectorWidth];
  if constexpr (sizeof(T) == 4) {
    load_floats(p, values);
  } else {
    load_vector(p, values);
  }
  std::uint64_t best = 0;
#pragma unroll
  for (int j = 0; j < kVectorWidth; ++j) best = max(best, key_of(values[j], column + j));
  return best;
}

constexpr int kArgmaxVectors = 4;  // of a thread

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) argmax_kernel(const ArgmaxParams p) {
  start_in_order();
  const std::int64_t row = blockIdx.x;
  const T* logits = static_cast<const T*>(p.logits) + row * p.stride;
  const auto first = static_cast<std::uint32_t>(p.first_column);
  std::uint64_t best = 0;
  const std::int64_t begin = blockIdx.y * std::int64_t{kThreads} * kArgmaxVectors * kVectorWidth;
#pragma unroll
  for (int i = 0; i < kArgmaxVectors; ++i) {
    const std::int64_t at = begin + (threadIdx.x + i * kThreads) * kVectorWidth;
    if (kAligned && at + kVectorWidth <= p.columns) {
      best = max(best, best_of_vector(logits + at, first + static_cast<std::uint32_t>(at)));
    } else {
      for (std::int64_t j = at; j < min(p.columns, at + kVectorWidth); ++j) {
        best = max(best, key_of(to_f32(logits[j]), first + static_cast<std::uint32_t>(j)));
      }
    }
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const std::uint64_t other = __shfl_xor_sync(0xffffffffu, best, distance);
    best = max(best, other);
  }
  if (threadIdx.x % 32 == 0 && best != 0) {
    atomicMax(reinterpret_cast<unsigned long long*>(p.keys + row), static_cast<unsigned long long>(best));
  }
}

__global__ void __launch_bounds__(kThreads) argmax_results(const ArgmaxParams p) {
  start_in_order();
  const std::int64_t row = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (row >= p.rows) return;
  const std::uint64_t key = p.keys[row];
  const auto order = static_cast<std::uint32_t>(key >> 32);
  const bool nan = order == kNanOrder;
  const std::uint32_t column = 0xffffffffu - static_cast<std::uint32_t>(key);
  p.indices[row] = nan ? -1 : static_cast<std::int32_t>(column);
  if (p.values == nullptr) return;
  const std::uint32_t bits = order & 0x80000000u ? order & 0x7fffffffu : ~order;
  p.values[row] = nan ? __uint_as_float(0x7fffffffu) : __uint_as_float(bits);
}

template <typename T>
void argmax_of(const ArgmaxParams& p) {
  constexpr std::int64_t kBlockColumns = std::int64_t{kThreads} * kArgmaxVectors * kVectorWidth;
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>(p.rows), static_cast<unsigned>(ceil_div(p.columns, kBlockColumns))),
      .block = dim3(kThreads),
      .overlaps_previous = true};
  if (vector_aligned(p.logits, p.stride)) {
    launch(argmax_kernel<T, true>, shape, p.stream, p);
  } else {
    launch(argmax_kernel<T, false>, shape, p.stream, p);
  }
}

// ---- conversions
// --------------------------------------------------------------------------------------------

template <typename From, typename To, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(const From* source, To* target, std::int64_t count) {
  start_in_order();
  const std::int64_t thread = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  const std::int64_t threads = std::int64_t{gridDim.x} * kThreads;
  std::int64_t begin = 0;
  if constexpr (kAligned) {
    begin = count / kVectorWidth * kVectorWidth;
    for (std::int64_t at = thread * kVectorWidth; at < begin; at += threads * kVectorWidth) {
      float values[kVectorWidth];
      if constexpr (sizeof(From) == 4) {
        load_floats(source + at, values);
      } else {
        load_vector(source + at, values);
      }
      if constexpr (sizeof(To) == 4) {
        reinterpret_cast<float4*>(target + at)[0] = {values[0], values[1], values[2], values[3]};
        reinterpret_cast<float4*>(target + at)[1] = {values[4], values[5], values[6], values[7]};
      } else {
        store_vector(target + at, values);
      }
    }
  }
  for (std::int64_t at = begin + thread; at < count; at += threads)
    target[at] = from_f32<To>(to_f32(source[at]));
}

template <typename From, typename To>
void convert_array(const From* source, To* target, std::int64_t count, StreamView stream) {
  const bool aligned = vector_aligned(source, 0) && vector_aligned(target, 0);
  const LaunchShape shape = {.grid = grid_of(aligned ? ceil_div(count, kVectorWidth) : count),
                             .block = dim3(kThreads),
                             .overlaps_previous = true};
  if (aligned) {
    launch(convert_kernel<From, To, true>, shape, stream, source, target, count);
  } else {
    launch(convert_kernel<From, To, false>, shape, stream, source, target, count);
  }
}

template <typename Integer>
__global__ void __launch_bounds__(kThreads) increment_kernel(Integer* values, std::int64_t count) {
  start_in_order();
  const std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (i < count) values[i] += 1;
}

template <typename Integer>
void increment_all(Integer* values, std::int64_t count, StreamView stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(count, kThreads)));
  launch(increment_kernel<Integer>, {.grid = grid, .block = dim3(kThreads), .overlaps_previous = true},
         stream, values, count);
}

}  // namespace

void gated_activation(const GatedActivationParams& params) {
  GatedActivationParams p = params;
  if (p.in_stride == 0) p.in_stride = p.columns;
  if (p.y_stride == 0) p.y_stride = p.columns;
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (p.activation == Activation::kSilu) {
      activate_rows<T, Activation::kSilu>(p);
    } else {
      activate_rows<T, Activation::kGeluTanh>(p);
    }
  });
}

void embed_rows(const EmbedParams& p) {
  if (p.columns == 0) return;
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(p.tokens_count)),
                               .block = dim3(kThreads),
                               .overlaps_previous = true};
    if (vector_aligned(p.table, p.columns) && vector_aligned(p.out, p.columns)) {
      launch(embed_kernel<T, true>, shape, p.stream, p);
    } else {
      launch(embed_kernel<T, false>, shape, p.stream, p);
    }
  });
}

void argmax_keys(const ArgmaxParams& params) {
  ArgmaxParams p = params;
  if (p.rows == 0) return;
  if (p.stride == 0) p.stride = p.columns;
  TESSERA_CHECK(p.columns > 0 && p.first_column + p.columns <= std::numeric_limits<std::int32_t>::max());
  fill_bytes(p.keys, 0, static_cast<std::size_t>(p.rows) * sizeof(std::uint64_t), p.stream);
  with_any_element(p.dtype, [&](auto element) { argmax_of<decltype(element)>(p); });
}

void argmax_of_keys(const ArgmaxParams& p) {
  if (p.rows == 0) return;
  launch(argmax_results,
         {.grid = dim3(static_cast<unsigned>(ceil_div(p.rows, kThreads))),
          .block = dim3(kThreads),
          .overlaps_previous = true},
         p.stream, p);
}

void argmax_rows(const ArgmaxParams& p) {
  argmax_keys(p);
  argmax_of_keys(p);
}

void convert(const void* source, DType source_dtype, void* target, DType target_dtype, std::int64_t count,
             StreamView stream) {
  with_any_element(source_dtype, [&](auto from) {
    with_any_element(target_dtype, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      convert_array(static_cast<const From*>(source), static_cast<To*>(target), count, stream);
    });
  });
}

void increment(std::int32_t* values, std::int64_t count, StreamView stream) {
  increment_all(values, count, stream);
}

void increment(std::int64_t* values, std::int64_t count, StreamView stream) {
  increment_all(values, count, stream);
}

}  // namespace tessera::cuda
