// Times attention of small query blocks over random lists beside the dense kernel:
// bench_attention_block_prefill [LENGTH …], H=8 K=1 D=128 bf16, blocks of 16 and 32 tokens, lists of each
// head and of all together. Prints medians of interleaved rounds, the ratio to dense, and what the reads of
// keys and values come to if none is found in L1; planning is part of the time.
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

struct Timed {
  Lists lists;
  bool shared;
  std::vector<double> times;
};

void bench(std::int64_t length, StreamView stream, MemoryMeter& meter) {
  const Shape shape = {"", 128, 8, 1, length, 0};
  Problem problem(shape, stream, meter);
  std::vector<std::unique_ptr<Timed>> all;
  const auto add = [&](int rows, double sparsity, bool shared) {
    all.push_back(std::make_unique<Timed>(
        Timed{Lists(problem, rows, sparsity, shared ? shape.kv_heads : shape.heads, meter), shared, {}}));
  };
  for (int rows : {16, 32}) {
    for (double s : {0.8, 0.9, 0.95}) add(rows, s, false);
    for (double s : {0.5, 0.9}) add(rows, s, true);
  }
  std::vector<std::unique_ptr<Chosen>> chosen;
  for (std::int64_t edge : {16, 32}) chosen.push_back(std::make_unique<Chosen>(problem, edge, 0.9, meter));
  CudaEvent begin(stream.device, EventUse::kTiming);
  CudaEvent end(stream.device, EventUse::kTiming);
  std::vector<double> dense;
  const int rounds = length > 100'000 ? 5 : 11;
  for (int round = -1; round < rounds; ++round) {  // the first is warm-up
    const double dense_ms = time(stream, begin, end, [&] { prefill_attention(problem.p); });
    if (round >= 0) dense.push_back(dense_ms);
    for (const auto& t : all) {
      const double ms = time(stream, begin, end, [&] { sparse_prefill_attention(t->lists.p); });
      if (round >= 0) t->times.push_back(ms);
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
  const double pairs = s * (s + 1) / 2 * shape.heads;
  const double dense_ms = median(dense);
  std::printf("S=%-6lld dense %36.3f ms %31.1f TFLOP/s\n", static_cast<long long>(length), dense_ms,
              4 * pairs * shape.head_dim / dense_ms * 1e-9);
  for (const auto& t : all) {
    const double ms = median(t->times);
    const double kept = pairs * t->lists.kept;
    std::printf(
        "S=%-6lld M=%-2d %s s=%.2f kept %.4f %9.3f ms  of dense %.4f %7.1f TFLOP/s %6.2f TB/s of K and V\n",
        static_cast<long long>(length), t->lists.rows_per_block, t->shared ? "shared  " : "per head",
        t->lists.sparsity, t->lists.kept, ms, ms / dense_ms, 4 * kept * shape.head_dim / ms * 1e-9,
        kept / kPageTokens * 4 * shape.head_dim / ms * 1e-9);
  }
  for (const auto& c : chosen) {
    const double ms = median(c->times);
    const double select_ms = median(c->select_times);
    std::printf(
        "S=%-6lld block_sparse %-2lld s=%.2f kept %.4f %9.3f ms  of dense %.4f  selection %.3f ms, of dense "
        "%.4f\n",
        static_cast<long long>(length), static_cast<long long>(c->select.problem.edge), c->sparsity, c->kept,
        ms, ms / dense_ms, select_ms, select_ms / dense_ms);
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  return cuda_bench::run_lengths(argc, argv, 0, bench);
}
