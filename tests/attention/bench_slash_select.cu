// Times estimation and selection of vertical_slash (the last line: flexprefill, α = 0.3) beside the dense
// kernel: bench_attention_slash_select [LENGTH …], H=8 K=1 D=128 bf16. Prints medians of interleaved rounds:
// window sums, choice and lists, both, and the ratio of both to dense.
#include <cstdio>
#include <memory>
#include <vector>

#include "attention/prefill_cuda.hpp"
#include "attention/window_sums_kernel.cuh"
#include "tests/attention/bench_slash_estimate.cuh"

using namespace tessera;
using namespace tessera::cuda;
using cuda_bench::Estimate;
using cuda_bench::median;
using cuda_bench::Problem;
using cuda_bench::Shape;
using cuda_bench::time;

namespace {

// The passes alone, by how many waves of CTAs share the keys.
void passes(const DeviceWindowSumsParams& p, StreamView stream) {
  CudaEvent begin(stream.device, EventUse::kTiming);
  CudaEvent end(stream.device, EventUse::kTiming);
  const WindowMaps maps = window_maps(p);
  window_sums_on_device(p);  // logarithms for the second
  for (const int waves : {1, 2, 4}) {
    const WindowArguments a = window_arguments(p, 66 * waves);
    std::vector<double> times[3];
    for (int round = 0; round < 9; ++round) {
      times[0].push_back(
          time(stream, begin, end, [&] { launch_window_pass<__nv_bfloat16, 128, false>(a, maps, stream); }));
      times[1].push_back(
          time(stream, begin, end, [&] { launch_window_pass<__nv_bfloat16, 128, true>(a, maps, stream); }));
    }
    std::printf(
        "S=%-6lld w=%lld waves %d: %d chunks a CTA, row sums %.3f ms, sums %.3f ms, no ring %.3f ms\n",
        static_cast<long long>(p.problem.tokens), static_cast<long long>(p.problem.window), waves,
        a.range_chunks, median(times[0]), median(times[1]), median(times[2]));
  }
}

void bench(std::int64_t length, StreamView stream, MemoryMeter& meter) {
  const Shape shape = {"", 128, 8, 1, length, 0};
  Problem problem(shape, stream, meter);
  std::vector<std::unique_ptr<Estimate>> estimates;
  for (const std::int64_t window : {256, 512}) {
    for (const std::int64_t budget : {256, 512, 1024}) {
      estimates.push_back(std::make_unique<Estimate>(problem, window, budget, 0, meter));
    }
  }
  estimates.push_back(std::make_unique<Estimate>(problem, 256, 64, 0.3, meter));
  passes(estimates.front()->sums, stream);
  CudaEvent begin(stream.device, EventUse::kTiming);
  CudaEvent end(stream.device, EventUse::kTiming);
  std::vector<double> dense;
  constexpr int kRounds = 7;
  for (int round = -1; round < kRounds; ++round) {
    const double dense_ms = time(stream, begin, end, [&] { prefill_attention(problem.p); });
    if (round >= 0) dense.push_back(dense_ms);
    for (const auto& e : estimates) {
      const double sums_ms = time(stream, begin, end, [&] { window_sums_on_device(e->sums); });
      const double choice_ms = time(stream, begin, end, [&] { select_slashes_on_device(e->choice); });
      const double ms = time(stream, begin, end, [&] {
        window_sums_on_device(e->sums);
        select_slashes_on_device(e->choice);
      });
      if (round < 0) continue;
      e->sums_times.push_back(sums_ms);
      e->choice_times.push_back(choice_ms);
      e->times.push_back(ms);
    }
  }
  const double dense_ms = median(dense);
  const double s = static_cast<double>(length);
  std::printf("S=%-6lld dense %.3f ms\n", static_cast<long long>(length), dense_ms);
  for (const auto& e : estimates) {
    const double sums_ms = median(e->sums_times);
    const double ms = median(e->times);
    const double flop = 2 * 2.0 * static_cast<double>(e->sums.problem.window) * s * 128 * 8;
    std::printf(
        "S=%-6lld w=%-3lld n=%-4lld sums %.3f ms %5.1f TFLOP/s  choice %.3f ms  both %.3f ms  of dense "
        "%.4f\n",
        static_cast<long long>(length), static_cast<long long>(e->sums.problem.window),
        static_cast<long long>(e->choice.problem.columns), sums_ms, flop / sums_ms * 1e-9,
        median(e->choice_times), ms, ms / dense_ms);
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  return cuda_bench::run_lengths(argc, argv, 512, bench);
}
