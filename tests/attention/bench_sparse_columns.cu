// Times attention over vertical_slash lists beside the dense kernel: bench_attention_sparse_columns [LENGTH
// …], H=8 K=1 D=128 bf16, budgets of n columns and n diagonals at random places of each head, the forced ones
// among them. Lists are given; planning is part of the time. Prints medians of interleaved rounds, the ratio
// to dense, and that ratio for each pair kept, which is 1 where time follows what is kept; executed: pairs of
// whole tiles of 64 keys, by pair kept. Then vertical_slash as a whole: estimation by the last 256 queries,
// selection and attention, beside estimation and selection alone.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "attention/selection_builder.hpp"
#include "tests/attention/bench_slash_estimate.cuh"
#include "tests/attention/bench_sparse_params.cuh"

using namespace tessera;
using namespace tessera::cuda;
using cuda_bench::Estimate;
using cuda_bench::median;
using cuda_bench::Problem;
using cuda_bench::Shape;
using cuda_bench::time;
using cuda_bench::to_device;

namespace {

// 0 … forced − 1, and others up to `budget` below `length`.
std::vector<std::int32_t> random_lines(std::int64_t length, std::int64_t budget, std::int32_t forced,
                                       std::mt19937_64& rng) {
  std::set<std::int32_t> lines;
  for (std::int32_t i = 0; i < forced; ++i) lines.insert(i);
  while (static_cast<std::int64_t>(lines.size()) < std::min(budget, length)) {
    lines.insert(static_cast<std::int32_t>(rng() % static_cast<std::uint64_t>(length)));
  }
  return {lines.begin(), lines.end()};
}

struct Lists {
  Lists(const Problem& problem, std::int64_t columns, std::int64_t diagonals, MemoryMeter& meter)
      : n_columns(columns), n_diagonals(diagonals) {
    const PrefillParams& dense = problem.p;
    std::mt19937_64 rng(11);
    std::vector<std::vector<std::int32_t>> verticals, slashes;
    for (int head = 0; head < dense.heads; ++head) {
      verticals.push_back(columns == 0 ? std::vector<std::int32_t>{}
                                       : random_lines(dense.tokens, columns, 4, rng));
      slashes.push_back(random_lines(dense.tokens, diagonals, 64, rng));
    }
    const PrefillSelection selection = select_diagonals(dense.tokens, false, verticals, slashes);
    const PairCounts pairs = count_pairs(selection);
    double visible = 0, causal = 0;
    for (std::size_t head = 0; head < pairs.visible.size(); ++head) {
      visible += static_cast<double>(pairs.visible[head]);
      causal += static_cast<double>(pairs.causal[head]);
    }
    kept = visible / causal;
    executed = executed_pairs(selection) / visible;

    const TokenRange all = {0, dense.tokens};
    const std::vector<QueryRows> query = query_rows({&all, 1}, kQueryBlockRows);
    begins = to_device(selection.row_begin, dense.stream, meter);
    entries = to_device(selection.entries, dense.stream, meter);
    query_blocks = to_device(query, dense.stream, meter);
    column_list = to_device(selection.columns, dense.stream, meter);
    column_counts =
        to_device(std::vector<std::int32_t>(static_cast<std::size_t>(dense.heads),
                                            static_cast<std::int32_t>(selection.columns_of(0).size())),
                  dense.stream, meter);
    const auto rows = static_cast<std::int64_t>(query.size());
    workspace = DeviceBuffer(sparse_prefill_workspace(dense.heads, rows, dense.heads, dense.tokens),
                             dense.stream.device, MemoryKind::kWorkspace, meter);
    PrefillLists given = {dense.heads, kQueryBlockRows, rows, begins.as<std::int64_t>(),
                          entries.as<BlockEntry>()};
    if (columns != 0) {
      given.columns = column_list.as<std::int32_t>();
      given.column_stride = static_cast<std::int64_t>(selection.columns_of(0).size());
      given.column_counts = column_counts.as<std::int32_t>();
    }
    p = cuda_bench::sparse_params(dense, given, query_blocks, rows, workspace);
  }

  // Pages and columns of a row fill tiles of 64 keys, each kind its own.
  static double executed_pairs(const PrefillSelection& s) {
    double pairs = 0;
    for (int head = 0; head < s.heads; ++head) {
      for (std::int64_t row = 0; row < s.query_blocks(); ++row) {
        const std::int64_t end = std::min(s.length, (row + 1) * kQueryBlockRows);
        std::int64_t pages = 0, columns = 0;
        std::vector<std::uint8_t> seen(static_cast<std::size_t>(row + 1), 0);
        for (const BlockEntry& entry : s.row(head, row)) {
          pages += __builtin_popcount(entry.pages());
          seen[static_cast<std::size_t>(entry.block())] = static_cast<std::uint8_t>(entry.pages());
        }
        for (const std::int32_t column : s.columns_of(head)) {
          if (column >= end) break;
          columns +=
              (seen[static_cast<std::size_t>(column / kBlockTokens)] >> column / kPageTokens % 4 & 1) == 0;
        }
        pairs += 64.0 * 64.0 * static_cast<double>(ceil_div(pages, 4) + ceil_div(columns, 64));
      }
    }
    return pairs;
  }

  std::int64_t n_columns, n_diagonals;
  double kept = 0;  // share of causal pairs
  double executed = 0;
  DeviceBuffer query_blocks, begins, entries, column_list, column_counts, workspace;
  SparsePrefillParams p;
  std::vector<double> times;
};

// Estimation, selection and attention.
struct Whole {
  Whole(const Problem& problem, const Lists& lists, std::int64_t budget, MemoryMeter& meter)
      : estimate(problem, 256, budget, 0, meter), attend(lists.p) {
    const SlashSelectParams& choice = estimate.choice;
    attend.lists.row_begin = choice.row_begin;
    attend.lists.entries = choice.entries;
    attend.lists.columns = choice.columns;
    attend.lists.column_stride = choice.problem.kept_columns();
    attend.lists.column_counts = choice.counts;
  }
  void choose() const {
    window_sums_on_device(estimate.sums);
    select_slashes_on_device(estimate.choice);
  }
  Estimate estimate;
  SparsePrefillParams attend;
  std::vector<double> choose_times, times;
};

void bench(std::int64_t length, StreamView stream, MemoryMeter& meter) {
  const Shape shape = {"", 128, 8, 1, length, 0};
  Problem problem(shape, stream, meter);
  std::vector<std::unique_ptr<Lists>> lists;
  for (std::int64_t n : {256, 512, 1024}) lists.push_back(std::make_unique<Lists>(problem, n, n, meter));
  // What either costs: no columns by the kernel that knows none, and nearly nothing but columns.
  lists.push_back(std::make_unique<Lists>(problem, 0, 256, meter));
  lists.push_back(std::make_unique<Lists>(problem, 4, 256, meter));
  lists.push_back(std::make_unique<Lists>(problem, std::min<std::int64_t>(length / 8, 16384), 64, meter));
  std::vector<std::unique_ptr<Whole>> wholes;
  for (std::size_t i = 0; i < 3; ++i) {
    wholes.push_back(std::make_unique<Whole>(problem, *lists[i], lists[i]->n_columns, meter));
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
    for (const auto& w : wholes) {
      const double choose_ms = time(stream, begin, end, [&] { w->choose(); });
      const double ms = time(stream, begin, end, [&] {
        w->choose();
        sparse_prefill_attention(w->attend);
      });
      if (round < 0) continue;
      w->choose_times.push_back(choose_ms);
      w->times.push_back(ms);
    }
  }
  const double s = static_cast<double>(length);
  const double flop = 2.0 * s * (s + 1) * shape.head_dim * shape.heads;
  const double dense_ms = median(dense);
  std::printf("S=%-6lld dense %9.3f ms %6.1f TFLOP/s\n", static_cast<long long>(length), dense_ms,
              flop / dense_ms * 1e-9);
  for (const auto& l : lists) {
    const double ms = median(l->times);
    std::printf(
        "S=%-6lld columns %-5lld diagonals %-4lld kept %.4f %8.3f ms  of dense %.4f  by pair %.3f  executed "
        "%.3f  %6.1f TFLOP/s\n",
        static_cast<long long>(length), static_cast<long long>(l->n_columns),
        static_cast<long long>(l->n_diagonals), l->kept, ms, ms / dense_ms, ms / dense_ms / l->kept,
        l->executed, flop * l->kept / ms * 1e-9);
  }
  for (const auto& w : wholes) {
    const double ms = median(w->times);
    const double choose_ms = median(w->choose_times);
    std::printf(
        "S=%-6lld vertical_slash %-4lld whole %8.3f ms  of dense %.4f  selection %.3f ms  of dense %.4f\n",
        static_cast<long long>(length), static_cast<long long>(w->estimate.choice.problem.columns), ms,
        ms / dense_ms, choose_ms, choose_ms / dense_ms);
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  return cuda_bench::run_lengths(argc, argv, 0, bench);
}
