// Window sums on the GPU (attention/window_sums_cuda.hpp): the first pass, the row sums joined, the second.
#include "attention/window_sums_cuda.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "attention/window_sums_kernel.cuh"
#include "runtime/core/cuda_check.hpp"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/cuda_memory.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {
namespace {

constexpr int kJoinRows = 32;
constexpr int kJoinThreads = 1024;
constexpr int kJoinParts = kJoinThreads / kJoinRows;

// Grid (H · row_tiles, 128 / 32): a thread takes every 32nd chunk of one row.
__global__ void __launch_bounds__(kJoinThreads) join_kernel(const WindowArguments p) {
  __shared__ float tops[kJoinParts][kJoinRows];
  __shared__ Fixed totals[kJoinParts][kJoinRows];
  const int pair = static_cast<int>(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x) % kJoinRows;
  const int part = static_cast<int>(threadIdx.x) / kJoinRows;
  const int row_in_tile = static_cast<int>(blockIdx.y) * kJoinRows + lane;
  const int first_row = pair % p.row_tiles * kWindowRows;
  const int last_position = min(p.first_position + first_row + kWindowRows, p.tokens) - 1;
  const int chunks = last_position / kWindowKeys + 1;
  const ChunkSum* sums = p.sums + static_cast<std::int64_t>(pair) * p.chunks * kWindowRows + row_in_tile;
  const auto sum_of = [&](int chunk) {
    const float2 sum =
        __ldg(reinterpret_cast<const float2*>(sums + static_cast<std::int64_t>(chunk) * kWindowRows));
    return ChunkSum{sum.x, sum.y};
  };

  float top = negative_infinity();
#pragma unroll 8
  for (int chunk = part; chunk < chunks; chunk += kJoinParts) top = fmaxf(top, sum_of(chunk).top);
  tops[part][lane] = top;
  __syncthreads();
  for (int i = 0; i < kJoinParts; ++i) top = fmaxf(top, tops[i][lane]);
  const float offset = top == negative_infinity() ? 0.0F : top;
  Fixed total = 0;
#pragma unroll 8
  for (int chunk = part; chunk < chunks; chunk += kJoinParts) {
    const ChunkSum sum = sum_of(chunk);
    total += __float2ll_rn(sum.sum * ptx::exp2_approx(sum.top - offset) * 0x1p40F);
  }
  totals[part][lane] = total;
  __syncthreads();
  if (part != 0) return;
  for (int i = 1; i < kJoinParts; ++i) total += totals[i][lane];
  const bool exists = first_row + row_in_tile < p.rows && total > 0;
  p.logarithms[pair * kWindowRows + row_in_tile] =
      exists ? offset + log2f(__ll2float_rn(total)) - kFixedFractionBits : -negative_infinity();
}

template <typename T, int kHeadDim>
void run_passes(const WindowArguments& a, const WindowMaps& maps, WindowUse use, StreamView stream) {
  const auto pairs = static_cast<unsigned>(a.heads * a.row_tiles);
  launch_window_pass<T, kHeadDim, false>(a, maps, stream);
  launch(join_kernel, {.grid = dim3(pairs, kWindowRows / kJoinRows), .block = kJoinThreads}, stream, a);
  if (use == WindowUse::kLines) {
    launch_window_pass<T, kHeadDim, true>(a, maps, stream);
  } else {
    launch_window_pass<T, kHeadDim, true, false, true>(a, maps, stream);
  }
}

template <typename T>
void run_by_head_dim(const WindowArguments& a, const WindowMaps& maps, int head_dim, WindowUse use,
                     StreamView stream) {
  switch (head_dim) {
    case 64:
      return run_passes<T, 64>(a, maps, use, stream);
    case 128:
      return run_passes<T, 128>(a, maps, use, stream);
    default:
      return run_passes<T, 256>(a, maps, use, stream);
  }
}

void check(const DeviceWindowSumsParams& p) {
  const WindowSumsProblem& problem = p.problem;
  constexpr std::int64_t kMostTokens = 1 << 22;  // sums of a row fit in Fixed
  TESSERA_CHECK(problem.tokens >= 0 && problem.tokens <= kMostTokens && problem.window >= 0);
  TESSERA_CHECK(problem.head_dim == 64 || problem.head_dim == 128 || problem.head_dim == 256);
  TESSERA_CHECK(problem.kv_heads > 0 && problem.heads % problem.kv_heads == 0);
  TESSERA_CHECK(p.kv.dtype == DType::kBF16 || p.kv.dtype == DType::kF16);
  TESSERA_CHECK(p.kv.head_dim == problem.head_dim && p.kv.kv_heads == problem.kv_heads);
  TESSERA_CHECK(p.kv.rows_of_head == nullptr && p.kv.length == problem.tokens);
  TESSERA_CHECK(p.kv.slot_bytes == 4ULL * kHalf * static_cast<std::size_t>(problem.head_dim));
  TESSERA_CHECK(p.q_row_stride % 8 == 0 && p.pool_slots > 0 && p.scale > 0);
}

}  // namespace

std::size_t window_sums_workspace(const WindowSumsProblem& problem) {
  return static_cast<std::size_t>(chunk_sums_of(problem)) * sizeof(ChunkSum) +
         static_cast<std::size_t>(problem.heads * row_tiles_of(problem) * kWindowRows) * sizeof(float);
}

void window_sums_on_device(const DeviceWindowSumsParams& p) {
  check(p);
  const WindowSumsProblem& problem = p.problem;
  const std::size_t bytes = static_cast<std::size_t>(problem.lists() * problem.tokens) * sizeof(Fixed);
  if (bytes == 0) return;
  fill_bytes(p.columns, 0, bytes, p.stream);
  if (problem.use == WindowUse::kLines) fill_bytes(p.diagonals, 0, bytes, p.stream);
  if (problem.rows() == 0) return;
  int major = 0;
  int multiprocessors = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, p.stream.device.ordinal));
  CUDA_CHECK(
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, p.stream.device.ordinal));
  if (major != 9) {
    throw ResourceError("window sums on the GPU need compute capability 9, this device has {}", major);
  }
  const WindowArguments a = window_arguments(p, multiprocessors);
  const WindowMaps maps = window_maps(p);
  const auto run = p.kv.dtype == DType::kBF16 ? run_by_head_dim<__nv_bfloat16> : run_by_head_dim<__half>;
  run(a, maps, problem.head_dim, problem.use, p.stream);
}

}  // namespace tessera::cuda
