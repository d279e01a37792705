// Times shapes of the sparse prefill kernel side by side: bench_attention_sparse_tiles [LENGTH …], H=8 K=1
// D=128 bf16. Lists are given: random blocks of M tokens at s = .5 and .9, then the single pages of 256
// diagonals; planning is not part of the time. Prints medians of interleaved rounds and the ratio to dense
// for each pair kept.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "attention/sparse_prefill_dispatch.cuh"
#include "tests/attention/bench_sparse_params.cuh"

using namespace tessera;
using namespace tessera::cuda;
using cuda_bench::median;
using cuda_bench::Problem;
using cuda_bench::Shape;
using cuda_bench::time;
using cuda_bench::to_device;

namespace {

// By keys a tile, stages, turns, steps of Q in registers.
template <int kRows, int kKeys, int kStages, bool kTurns, int kQuerySteps>
using Listed = PrefillConfig<__nv_bfloat16, 128, 2, kKeys, kStages, kTurns, 8, kQuerySteps, kPageTokens,
                             kRows == 64 ? 2 : 1, false>;

struct Form {
  const char* name;
  void (*run)(const ListPlan&, StreamView);
};
template <class C>
Form form(const char* name) {
  return {name, [](const ListPlan& plan, StreamView stream) {
            launch_lists<C>(plan.arguments, plan.maps, plan.multiprocessors, stream);
          }};
}
const std::vector<Form>& forms(int rows) {
  static const std::vector<Form> of_64 = {form<Listed<64, 64, 3, false, 8>>("64 keys, 3 stages"),
                                          form<Listed<64, 96, 2, false, 8>>("96 keys, 2 stages"),
                                          form<Listed<64, 64, 3, false, 4>>("64 keys, half of Q")};
  static const std::vector<Form> of_128 = {
      form<Listed<128, 128, 2, true, 0>>("128 keys, turns"),
      form<Listed<128, 128, 2, true, 8>>("128 keys, turns, Q in registers"),
      form<Listed<128, 128, 2, false, 8>>("128 keys, Q in registers"),
      form<Listed<128, 192, 2, true, 0>>("192 keys, turns")};
  return rows == 64 ? of_64 : of_128;
}

struct Lists {
  std::vector<std::int64_t> row_begin = {0};
  std::vector<BlockEntry> entries;
  double pages = 0;
};

// Each block of M tokens with the chance 1 − sparsity, and the diagonal one.
Lists random_blocks(const PrefillParams& dense, int rows_per_block, double sparsity) {
  Lists lists;
  std::mt19937_64 rng(11);
  const int blocks_a_unit = rows_per_block / kBlockTokens;
  const auto limit = static_cast<std::uint64_t>((1 - sparsity) * 0x1p32);
  for (int head = 0; head < dense.heads; ++head) {
    for (std::int64_t row = 0; row < dense.tokens / rows_per_block; ++row) {
      for (std::int64_t unit = 0; unit <= row; ++unit) {
        if (unit != row && (rng() >> 32) >= limit) continue;
        for (int b = 0; b < blocks_a_unit; ++b)
          lists.entries.push_back(BlockEntry::make(unit * blocks_a_unit + b, 15));
        lists.pages += 4.0 * blocks_a_unit;
      }
      lists.row_begin.push_back(static_cast<std::int64_t>(lists.entries.size()));
    }
  }
  return lists;
}

// Five neighbouring pages, at the distance of each diagonal from the row: as many rows as a head has see
// them.
Lists diagonals(const PrefillParams& dense, int rows_per_block, int count) {
  Lists lists;
  std::mt19937_64 rng(11);
  const std::int64_t blocks = dense.tokens / kBlockTokens;
  std::vector<std::uint8_t> masks(static_cast<std::size_t>(blocks));
  for (int head = 0; head < dense.heads; ++head) {
    std::vector<std::int64_t> offsets = {0};
    while (static_cast<int>(offsets.size()) < count) {
      offsets.push_back(static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(dense.tokens)));
    }
    for (std::int64_t row = 0; row < dense.tokens / rows_per_block; ++row) {
      std::fill(masks.begin(), masks.end(), 0);
      const std::int64_t first = row * rows_per_block;
      for (const std::int64_t offset : offsets) {
        const std::int64_t begin = std::max<std::int64_t>(0, first - offset) / kPageTokens;
        const std::int64_t end = first + rows_per_block - 1 - offset;
        for (std::int64_t page = begin; page * kPageTokens <= end; ++page) {
          masks[static_cast<std::size_t>(page / 4)] |= static_cast<std::uint8_t>(1U << page % 4);
        }
      }
      for (std::int64_t block = 0; block < blocks; ++block) {
        const unsigned mask = masks[static_cast<std::size_t>(block)];
        if (mask == 0) continue;
        lists.entries.push_back(BlockEntry::make(block, mask));
        lists.pages += __builtin_popcount(mask);
      }
      lists.row_begin.push_back(static_cast<std::int64_t>(lists.entries.size()));
    }
  }
  return lists;
}

struct Work {
  Work(const Problem& problem, int rows_per_block, std::string what, const Lists& lists, MemoryMeter& meter)
      : rows_per_block(rows_per_block), name(std::move(what)) {
    const PrefillParams& dense = problem.p;
    const std::int64_t rows = dense.tokens / rows_per_block;
    const TokenRange all = {0, dense.tokens};
    begins = to_device(lists.row_begin, dense.stream, meter);
    entries = to_device(lists.entries, dense.stream, meter);
    query_blocks = to_device(query_rows({&all, 1}, rows_per_block), dense.stream, meter);
    workspace = DeviceBuffer(sparse_prefill_workspace(dense.heads, rows), dense.stream.device,
                             MemoryKind::kWorkspace, meter);
    const SparsePrefillParams p = cuda_bench::sparse_params(
        dense, {dense.heads, rows_per_block, rows, begins.as<std::int64_t>(), entries.as<BlockEntry>()},
        query_blocks, rows, workspace);
    plan = plan_sparse_prefill(p);
    const double length = static_cast<double>(dense.tokens);
    kept = lists.pages * kPageTokens * rows_per_block / (length * (length + 1) / 2 * dense.heads);
    times.resize(forms(rows_per_block).size());
  }
  int rows_per_block;
  std::string name;
  double kept = 0;  // pairs of whole pages, as a share of causal pairs
  DeviceBuffer begins, entries, query_blocks, workspace;
  ListPlan plan;
  std::vector<std::vector<double>> times;
};

void bench(std::int64_t length, StreamView stream, MemoryMeter& meter) {
  const Shape shape = {"", 128, 8, 1, length, 0};
  Problem problem(shape, stream, meter);
  std::vector<std::unique_ptr<Work>> works;
  for (int rows : {128, 64}) {
    for (const double s : {0.5, 0.9}) {
      works.push_back(std::make_unique<Work>(problem, rows, s == 0.5 ? "blocks s=.5" : "blocks s=.9",
                                             random_blocks(problem.p, rows, s), meter));
    }
    works.push_back(
        std::make_unique<Work>(problem, rows, "256 diagonals", diagonals(problem.p, rows, 256), meter));
  }
  CudaEvent begin(stream.device, EventUse::kTiming);
  CudaEvent end(stream.device, EventUse::kTiming);
  std::vector<double> dense;
  constexpr int kRounds = 5;
  for (int round = -1; round < kRounds; ++round) {  // the first is warm-up
    const double dense_ms = time(stream, begin, end, [&] { prefill_attention(problem.p); });
    if (round >= 0) dense.push_back(dense_ms);
    for (const auto& work : works) {
      const std::vector<Form>& all = forms(work->rows_per_block);
      for (std::size_t i = 0; i < all.size(); ++i) {
        const double ms = time(stream, begin, end, [&] { all[i].run(work->plan, stream); });
        if (round >= 0) work->times[i].push_back(ms);
      }
    }
  }
  const double dense_ms = median(dense);
  std::printf("S=%lld dense %.3f ms\n", static_cast<long long>(length), dense_ms);
  for (const auto& work : works) {
    const std::vector<Form>& all = forms(work->rows_per_block);
    for (std::size_t i = 0; i < all.size(); ++i) {
      const double ms = median(work->times[i]);
      std::printf("S=%lld M=%-3d %-14s %-32s kept %.4f %8.3f ms  of dense %.4f  by pair %.3f\n",
                  static_cast<long long>(length), work->rows_per_block, work->name.c_str(), all[i].name,
                  work->kept, ms, ms / dense_ms, ms / dense_ms / work->kept);
    }
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  return cuda_bench::run_lengths(argc, argv, 128, bench);
}
