// Random lists for the benches of sparse prefill: the diagonal block and others of M tokens, for query blocks
// of M rows of each head, or of the heads that share a list.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "tests/attention/bench_sparse_params.cuh"

namespace cuda_bench {

struct Lists {
  // heads: lists, a divisor of H.
  Lists(const Problem& problem, int rows_per_block, double sparsity, int heads, MemoryMeter& meter)
      : rows_per_block(rows_per_block), sparsity(sparsity) {
    const PrefillParams& dense = problem.p;
    const std::int64_t rows = dense.tokens / rows_per_block;
    const int pages_a_unit = rows_per_block / kPageTokens;
    constexpr int kBlockPages = kBlockTokens / kPageTokens;
    std::mt19937_64 rng(11);
    std::vector<std::int64_t> row_begin = {0};
    std::vector<BlockEntry> entries;
    double visible = 0;
    const double edge = rows_per_block;
    for (int head = 0; head < heads; ++head) {
      for (std::int64_t row = 0; row < rows; ++row) {
        const std::int64_t others =
            std::llround((1 - sparsity) * static_cast<double>(row + 1)) - 1;  // beside the diagonal
        std::int64_t wanted = std::clamp<std::int64_t>(others, 0, row);
        visible += static_cast<double>(wanted) * edge * edge + edge * (edge + 1) / 2;
        for (std::int64_t unit = 0; unit <= row; ++unit) {  // each of the rest with the chance that is due
          const bool taken = unit == row || static_cast<std::int64_t>(
                                                rng() % static_cast<std::uint64_t>(row - unit)) < wanted;
          if (!taken) continue;
          if (unit != row) --wanted;
          const std::int64_t first = unit * pages_a_unit;
          const int pages = std::min(pages_a_unit, kBlockPages);  // of an entry
          const unsigned mask = (1U << pages) - 1;
          for (std::int64_t page = first; page < first + pages_a_unit; page += pages) {
            entries.push_back(BlockEntry::make(page / kBlockPages, mask << page % kBlockPages));
          }
        }
        row_begin.push_back(static_cast<std::int64_t>(entries.size()));
      }
    }
    const double length = static_cast<double>(dense.tokens);
    kept = visible / (length * (length + 1) / 2 * heads);
    const TokenRange all = {0, dense.tokens};
    const std::vector<QueryRows> query = query_rows({&all, 1}, rows_per_block);
    begins = to_device(row_begin, dense.stream, meter);
    list = to_device(entries, dense.stream, meter);
    query_blocks = to_device(query, dense.stream, meter);
    workspace = DeviceBuffer(sparse_prefill_workspace(dense.heads, rows), dense.stream.device,
                             MemoryKind::kWorkspace, meter);
    p = cuda_bench::sparse_params(
        dense, {heads, rows_per_block, rows, begins.as<std::int64_t>(), list.as<BlockEntry>()}, query_blocks,
        rows, workspace);
  }

  int rows_per_block;
  double sparsity;
  double kept = 0;  // share of causal pairs
  DeviceBuffer begins, list, query_blocks, workspace;
  SparsePrefillParams p;
  std::vector<double> times;
};

}  // namespace cuda_bench
