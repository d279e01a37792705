#include <algorithm>

#include "runtime/core/cuda_element.cuh"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/cuda_overlap.cuh"
#include "runtime/core/device_ops.hpp"
#include "runtime/core/random.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostColumnBlocks = 8;

template <typename T>
__global__ void __launch_bounds__(kThreads) draw_kernel(const DrawParams p) {
  start_in_order();
  const std::int64_t row = blockIdx.x;
  const std::int64_t first = (p.row_begin + row) * p.whole_columns + p.column_begin;
  T* target = static_cast<T*>(p.target) + row * p.columns;
  for (std::int64_t c = blockIdx.y * kThreads + threadIdx.x; c < p.columns; c += gridDim.y * kThreads) {
    const std::uint64_t bits =
        hash_counter(p.seed, p.random_stream, static_cast<std::uint64_t>(first + c)) >> 40;
    const float unit = static_cast<float>(bits) * 0x1.0p-23f - 1.0f;  // 24 bits: exact
    // Never contracted to a fused operation, so that the bits are those of the host.
    target[c] = from_f32<T>(__fadd_rn(p.center, __fmul_rn(p.half_width, unit)));
  }
}

}  // namespace

void draw_uniform(const DrawParams& p) {
  if (p.columns == 0) return;
  const dim3 grid(static_cast<unsigned>(p.rows),
                  static_cast<unsigned>(std::min(ceil_div(p.columns, kThreads), kMostColumnBlocks)));
  with_any_element(p.dtype, [&](auto element) {
    launch(draw_kernel<decltype(element)>, {.grid = grid, .block = dim3(kThreads), .overlaps_previous = true},
           p.stream, p);
  });
}

}  // namespace tessera::cuda
