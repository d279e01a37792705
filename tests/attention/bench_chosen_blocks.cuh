// What the benches of sparse prefill choose by block_sparse.
#pragma once

#include <algorithm>
#include <vector>

#include "attention/block_select_cuda.hpp"
#include "tests/attention/bench_sparse_params.cuh"

namespace cuda_bench {

// block_sparse with a budget that keeps about 1 − sparsity of the pairs.
struct Chosen {
  Chosen(const Problem& problem, std::int64_t edge, double sparsity, MemoryMeter& meter)
      : sparsity(sparsity) {
    const PrefillParams& dense = problem.p;
    BlockSelectProblem& q = select.problem;
    q = {dense.tokens, dense.heads, dense.kv.kv_heads, dense.kv.head_dim, edge, 3};
    const std::int64_t rows = q.rows();
    const auto share = [&](std::int64_t budget) {  // of blocks below the diagonal and on it
      const double b = static_cast<double>(std::min(budget, rows));
      const double n = static_cast<double>(rows);
      return (b * (b + 1) / 2 + (n - b) * b) / (n * (n + 1) / 2);
    };
    while (share(q.budget) < 1 - sparsity && q.budget < rows) ++q.budget;
    kept = share(q.budget);
    const auto buffer = [&](std::size_t bytes) {
      return DeviceBuffer(bytes, dense.stream.device, MemoryKind::kWorkspace, meter);
    };
    const TokenRange all = {0, dense.tokens};
    const std::vector<QueryRows> query = query_rows({&all, 1}, static_cast<int>(edge));
    query_blocks = to_device(query, dense.stream, meter);
    begins = buffer(static_cast<std::size_t>(q.heads * rows + 1) * sizeof(std::int64_t));
    entries = buffer(static_cast<std::size_t>(block_list_entries(q)) * sizeof(BlockEntry));
    means = buffer(block_select_workspace(q));
    workspace = buffer(sparse_prefill_workspace(dense.heads, rows));
    select.q = dense.q;
    select.q_row_stride = dense.q_row_stride;
    select.kv = dense.kv;
    select.workspace = means.data();
    select.row_begin = begins.as<std::int64_t>();
    select.entries = entries.as<BlockEntry>();
    select.stream = dense.stream;
    attend = cuda_bench::sparse_params(
        dense, {dense.heads, static_cast<int>(edge), rows, select.row_begin, select.entries}, query_blocks,
        rows, workspace);
  }

  double sparsity;
  double kept = 0;
  DeviceBuffer query_blocks, begins, entries, means, workspace;
  DeviceBlockSelectParams select;
  SparsePrefillParams attend;
  std::vector<double> select_times, times;
};

}  // namespace cuda_bench
