// Times attention over random lists of blocks beside the dense kernel: bench_attention_sparse_prefill [LENGTH
// …], H=8 K=1 D=128 bf16. Lists hold the diagonal block and random others of M tokens, for query blocks of M
// rows of each head. Prints medians of interleaved rounds, the ratio to dense, and that ratio for each pair
// kept, which is 1 where time follows 1 − s; planning is part of the time. Then block_sparse, whose selection
// is part of the time too, and timed by itself.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "tests/attention/bench_chosen_blocks.cuh"
#include "tests/attention/bench_random_lists.cuh"

using namespace tessera;
using namespace tessera::cuda;
using cuda_bench::Chosen;
using cuda_bench::Lists;
using cuda_bench::median;
using cuda_bench::Problem;
using cuda_bench::Shape;
using cuda_bench::time;

namespace {

constexpr double kSparsities[] = {0, 0.5, 0.8, 0.9, 0.95, 0.98};

void bench(std::int64_t length, StreamView stream, MemoryMeter& meter) {
  const Shape shape = {"", 128, 8, 1, length, 0};
  Problem problem(shape, stream, meter);
  std::vector<std::unique_ptr<Lists>> lists;
  for (int rows : {128, 64}) {
    for (double s : kSparsities)
      lists.push_back(std::make_unique<Lists>(problem, rows, s, shape.heads, meter));
  }
  std::vector<std::unique_ptr<Chosen>> chosen;
  for (std::int64_t edge : {64, 128}) {
    for (double s : {0.5, 0.8, 0.9, 0.95}) {
      chosen.push_back(std::make_unique<Chosen>(problem, edge, s, meter));
    }
  }
  CudaEvent begin(stream.device, EventUse::kTiming);
  CudaEvent end(stream.device, EventUse::kTiming);
  std::vector<double> dense;
  const int rounds = length > 100'000 ? 5 : 11;
  for (int round = -1; round < rounds; ++round) {  // the first is warm-up
    const double dense_ms = time(stream, begin, end, [&] { prefill_attention(problem.p); });
    if (round >= 0) dense.push_back(dense_ms);
    for (const auto& l : lists) {
      const double ms = time(stream, begin, end, [&] { sparse_prefill_attention(l->p); });
      if (round >= 0) l->times.push_back(ms);
    }
    for (const auto& c : chosen) {
      const double select_ms = time(stream, begin, end, [&] { select_blocks_on_device(c->select); });
      const double ms = time(stream, begin, end, [&] {
        select_blocks_on_device(c->select);
        sparse_prefill_attention(c->attend);
      });
      if (round < 0) continue;
      c->select_times.push_back(select_ms);
      c->times.push_back(ms);
    }
  }
  const double s = static_cast<double>(length);
  const double flop = 2.0 * s * (s + 1) * shape.head_dim * shape.heads;
  const double dense_ms = median(dense);
  std::printf("S=%-6lld dense %22.3f ms                                %6.1f TFLOP/s\n",
              static_cast<long long>(length), dense_ms, flop / dense_ms * 1e-9);
  for (const auto& l : lists) {
    const double ms = median(l->times);
    std::printf("S=%-6lld M=%-3d s=%.2f kept %.4f %9.3f ms  of dense %.4f  by pair %.3f %6.1f TFLOP/s\n",
                static_cast<long long>(length), l->rows_per_block, l->sparsity, l->kept, ms, ms / dense_ms,
                ms / dense_ms / l->kept, flop * l->kept / ms * 1e-9);
  }
  for (const auto& c : chosen) {
    const double ms = median(c->times);
    std::printf(
        "S=%-6lld block_sparse %-3lld s=%.2f kept %.4f %9.3f ms  of dense %.4f  by pair %.3f selection %.3f "
        "ms\n",
        static_cast<long long>(length), static_cast<long long>(c->select.problem.edge), c->sparsity, c->kept,
        ms, ms / dense_ms, ms / dense_ms / c->kept, median(c->select_times));
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  return cuda_bench::run_lengths(argc, argv, 0, bench);
}
