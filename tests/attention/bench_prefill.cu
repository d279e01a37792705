// Times the dense prefill kernel, every configuration beside the others: bench_attention_prefill [SHAPE …],
// SHAPE a substring of the names that it prints. FLOP are those of the causal half, 2 · S² · D · H. Medians
// of interleaved rounds.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "attention/prefill_dispatch.cuh"
#include "tests/attention/bench_prefill_problem.cuh"

using namespace tessera;
using namespace tessera::cuda;
using cuda_bench::largest_difference;
using cuda_bench::median;
using cuda_bench::Problem;
using cuda_bench::Shape;

namespace {

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
