// Times the dense prefill kernel, every configuration beside the others: bench_attention_prefill [SHAPE …],
// SHAPE a substring of the names that it prints. FLOP are those of the causal half, 2 · S² · D · H. Medians
// of interleaved rounds.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "attention/prefill_dispatch.cuh"
#include "runtime/core/cuda_memory.hpp"
#include "runtime/core/cuda_stream.hpp"

using namespace tessera;
using namespace tessera::cuda;

namespace {

struct Shape {
  const char* name;
  int head_dim;
  int heads;
  int kv_heads;
  std::int64_t length;
  std::int32_t window;
};

constexpr Shape kShapes[] = {
    {"D128-H8-K1-16K", 128, 8, 1, 16384, 0},
    {"D128-H8-K1-32K", 128, 8, 1, 32768, 0},
    {"D128-H64-K8-16K", 128, 64, 8, 16384, 0},
    {"D128-H8-K1-128K", 128, 8, 1, 131072, 0},
    {"D64-H16-K2-32K", 64, 16, 2, 32768, 0},
    {"D256-H16-K8-32K", 256, 16, 8, 32768, 0},
    {"D128-H32-K8-32K-window1K", 128, 32, 8, 32768, 1024},
    {"D128-H32-K8-4K", 128, 32, 8, 4096, 0},
    {"D128-H28-K4-8K", 128, 28, 4, 8192, 0},
};

using Launch = void (*)(const PrefillParams&);
struct Variant {
  const char* name;
  int head_dim;
  Launch launch;
};

template <int kD, int kConsumers, int kKeys, int kStages, bool kTurns, int kSlack, int kQuerySteps = 0>
[[maybe_unused]] Variant variant(const char* name) {
  return {name, kD,
          launch_prefill<
              PrefillConfig<__nv_bfloat16, kD, kConsumers, kKeys, kStages, kTurns, kSlack, kQuerySteps>>};
}

// −DBENCH_VARIANTS='"FILE"': more rows, to compare configurations in one run.
const Variant kVariants[] = {
    {"chosen", 0, nullptr},
#ifdef BENCH_VARIANTS
#include BENCH_VARIANTS
#endif
};

// Approximately normal: the sum of four uniform numbers, variance 1.
__global__ void fill_normal(__nv_bfloat16* values, std::int64_t count, std::uint64_t seed) {
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
__global__ void largest_difference(const __nv_bfloat16* a, const __nv_bfloat16* b, std::int64_t count,
                                   int* bits) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  float worst = 0;
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count; i += stride) {
    const float difference = fabsf(__bfloat162float(a[i]) - __bfloat162float(b[i]));
    worst = difference <= worst ? worst : isnan(difference) ? INFINITY : difference;
  }
  atomicMax(bits, __float_as_int(worst));
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Inputs and outputs of a shape: random values, blocks in shuffled slots.
struct Problem {
  Problem(const Shape& shape, StreamView stream, MemoryMeter& meter)
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

void bench(const Shape& shape, StreamView stream, MemoryMeter& meter, int rounds) {
  Problem problem(shape, stream, meter);
  const PrefillParams& p = problem.p;
  DeviceBuffer& out = problem.out;
  std::vector<Variant> variants;
  for (const Variant& v : kVariants) {
    if (v.launch == nullptr) {
      variants.push_back({v.name, shape.head_dim, prefill_by_head_dim<__nv_bfloat16>});
    } else if (v.head_dim == shape.head_dim) {
      variants.push_back(v);
    }
  }
  std::vector<std::vector<double>> times(variants.size());
  std::vector<float> differences(variants.size());  // from the first one
  DeviceBuffer first_out(out.bytes(), stream.device, MemoryKind::kWorkspace, meter);
  DeviceBuffer difference(4, stream.device, MemoryKind::kWorkspace, meter);
  CudaEvent begin(stream.device, EventUse::kTiming);
  CudaEvent end(stream.device, EventUse::kTiming);
  for (int round = -1; round < rounds; ++round) {  // the first is warm-up
    for (std::size_t i = 0; i < variants.size(); ++i) {
      begin.record(stream);
      variants[i].launch(p);
      end.record(stream);
      const double ms = milliseconds_between(begin, end);
      if (round >= 0) {
        times[i].push_back(ms);
        continue;
      }
      if (i == 0) copy_on_device(first_out.data(), out.data(), out.bytes(), stream);
      fill_bytes(difference.data(), 0, 4, stream);
      largest_difference<<<1024, 256, 0, native(stream)>>>(
          first_out.as<__nv_bfloat16>(), out.as<__nv_bfloat16>(), problem.q_elements, difference.as<int>());
      copy_to_host(&differences[i], difference.data(), 4, stream);
      fill_bytes(out.data(), 0xFF, out.bytes(), stream);
      synchronize(stream);
    }
  }
  const double s = static_cast<double>(shape.length);
  const double w = shape.window == 0 ? s : shape.window;
  const double pairs = w * (w + 1) / 2 + (s - w) * w;
  const double flop = 4.0 * pairs * shape.head_dim * shape.heads;
  for (std::size_t i = 0; i < variants.size(); ++i) {
    const double ms = median(times[i]);
    std::printf("%-26s %-18s %9.4f ms (best %9.4f) %7.1f TFLOP/s diff %.0e\n", shape.name, variants[i].name,
                ms, *std::min_element(times[i].begin(), times[i].end()), flop / ms * 1e-9,
                static_cast<double>(differences[i]));
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Device device{DeviceKind::kCuda, 0};
    MemoryMeter meter;
    CudaStream stream(device);
    for (const Shape& shape : kShapes) {
      bool wanted = argc < 2;
      for (int i = 1; i < argc; ++i) wanted = wanted || std::strstr(shape.name, argv[i]) != nullptr;
      if (wanted) bench(shape, stream, meter, shape.length > 100'000 ? 5 : 15);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_attention_prefill: %s\n", error.what());
    return 1;
  }
  return 0;
}
