// Problems for the benches of prefill kernels: random values, blocks in shuffled slots.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <random>
#include <vector>

#include "attention/prefill_cuda.hpp"
#include "runtime/core/cuda_check.hpp"
#include "runtime/core/cuda_memory.hpp"
#include "runtime/core/cuda_stream.hpp"

namespace cuda_bench {

using namespace tessera;
using namespace tessera::cuda;

struct Shape {
  const char* name;
  int head_dim;
  int heads;
  int kv_heads;
  std::int64_t length;
  std::int32_t window;
};

// Approximately normal: the sum of four uniform numbers, variance 1.
inline __global__ void fill_normal(__nv_bfloat16* values, std::int64_t count, std::uint64_t seed) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count; i += stride) {
    std::uint64_t bits = (static_cast<std::uint64_t>(i) + 1) * 0x9e3779b97f4a7c15ULL + seed;  // SplitMix64
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9ULL;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebULL;
    bits ^= bits >> 31;
    float sum = 0;
    for (int part = 0; part < 4; ++part)
      sum += static_cast<float>(bits >> (16 * part) & 0xFFFF) * (1.0F / 65536.0F);
    values[i] = __float2bfloat16((sum - 2.0F) * 1.7320508F);
  }
}

// Largest |a − b| as the bits of a float, which order like it; NaN counts as infinite.
inline __global__ void largest_difference(const __nv_bfloat16* a, const __nv_bfloat16* b, std::int64_t count,
                                          int* bits) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  float worst = 0;
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count; i += stride) {
    const float difference = fabsf(__bfloat162float(a[i]) - __bfloat162float(b[i]));
    worst = difference <= worst ? worst : isnan(difference) ? INFINITY : difference;
  }
  atomicMax(bits, __float_as_int(worst));
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

template <typename T>
DeviceBuffer to_device(const std::vector<T>& values, StreamView stream, MemoryMeter& meter) {
  DeviceBuffer buffer(std::max<std::size_t>(1, values.size()) * sizeof(T), stream.device,
                      MemoryKind::kWorkspace, meter);
  copy_to_device(buffer.data(), values.data(), values.size() * sizeof(T), stream);
  synchronize(stream);
  return buffer;
}

// Milliseconds of what a call puts on the stream.
template <typename Call>
double time(StreamView stream, CudaEvent& begin, CudaEvent& end, const Call& call) {
  begin.record(stream);
  call();
  end.record(stream);
  return milliseconds_between(begin, end);
}

// The main program: bench(length, stream, meter) for the lengths that the command line names, in whole blocks
// of 128 tokens and at least `least`, or for three. Returns the exit code.
template <typename Bench>
int run_lengths(int argc, char** argv, long long least, const Bench& bench) {
  try {
    MemoryMeter meter;
    CudaStream stream({DeviceKind::kCuda, 0});
    std::vector<std::int64_t> lengths = {16384, 65536, 131072};
    if (argc > 1) lengths.clear();
    for (int i = 1; i < argc; ++i) lengths.push_back(std::max(least, std::atoll(argv[i]) / 128 * 128));
    for (const std::int64_t length : lengths) bench(length, stream.view(), meter);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
  return 0;
}

// Inputs and outputs of a shape: random values, blocks in shuffled slots.
struct Problem {
  Problem(const Shape& shape, tessera::StreamView stream, tessera::MemoryMeter& meter)
      : blocks(ceil_div(shape.length, kBlockTokens)),
        slots(blocks * shape.kv_heads),
        slot_elements(2LL * kBlockTokens * shape.head_dim),
        q_elements(shape.length * shape.heads * shape.head_dim) {
    const auto buffer = [&](std::int64_t bytes) {
      return DeviceBuffer(static_cast<std::size_t>(bytes), stream.device, MemoryKind::kWorkspace, meter);
    };
    q = buffer(2 * q_elements);
    out = buffer(2 * q_elements);
    pool = buffer(2 * slots * slot_elements);
    table = buffer(4 * slots);
    positions = buffer(4 * blocks);
    lse = buffer(4 * shape.length * shape.heads);
    counters = buffer(8);
    fill_bytes(counters.data(), 0, 8, stream);
    fill_normal<<<1024, 256, 0, native(stream)>>>(q.as<__nv_bfloat16>(), q_elements, 1);
    fill_normal<<<1024, 256, 0, native(stream)>>>(pool.as<__nv_bfloat16>(), slots * slot_elements, 2);
    std::vector<std::int32_t> order(static_cast<std::size_t>(slots));
    std::iota(order.begin(), order.end(), 0);
    std::mt19937_64 rng(7);
    std::shuffle(order.begin(), order.end(), rng);
    std::vector<std::int32_t> first(static_cast<std::size_t>(blocks));
    for (std::int64_t b = 0; b < blocks; ++b)
      first[static_cast<std::size_t>(b)] = static_cast<std::int32_t>(b * 64);
    copy_to_device(table.data(), order.data(), order.size() * 4, stream);
    copy_to_device(positions.data(), first.data(), first.size() * 4, stream);
    synchronize(stream);

    p.tokens = shape.length;
    p.heads = shape.heads;
    p.q = q.data();
    p.q_row_stride = static_cast<std::int64_t>(shape.heads) * shape.head_dim;
    p.block_positions = positions.as<std::int32_t>();
    p.kv.slots = pool.data();
    p.kv.slot_bytes = static_cast<std::size_t>(2 * slot_elements);
    p.kv.dtype = DType::kBF16;
    p.kv.kv_heads = shape.kv_heads;
    p.kv.head_dim = shape.head_dim;
    p.kv.blocks = blocks;
    p.kv.table_stride = blocks;
    p.kv.table = table.as<std::int32_t>();
    p.kv.length = shape.length;
    p.pool_slots = slots;
    p.scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
    p.window = shape.window;
    p.out = out.data();
    p.lse = lse.as<float>();
    p.counters = counters.as<std::uint32_t>();
    p.stream = stream;
  }

  std::int64_t blocks, slots, slot_elements, q_elements;
  DeviceBuffer q, out, pool, table, positions, lse, counters;
  PrefillParams p;
};

}  // namespace cuda_bench
