// Estimation and selection of vertical_slash, ready to be timed.
#pragma once

#include <vector>

#include "attention/slash_select_cuda.hpp"
#include "attention/window_sums_cuda.hpp"
#include "tests/attention/bench_prefill_problem.cuh"

namespace cuda_bench {

struct Estimate {
  Estimate(const Problem& problem, std::int64_t window, std::int64_t budget, double alpha,
           MemoryMeter& meter) {
    const PrefillParams& dense = problem.p;
    const auto buffer = [&](std::size_t bytes) {
      return DeviceBuffer(bytes, dense.stream.device, MemoryKind::kWorkspace, meter);
    };
    sums.problem = {dense.tokens, dense.heads, dense.kv.kv_heads, dense.kv.head_dim, window, false};
    const auto units = static_cast<std::size_t>(dense.heads * dense.tokens);
    column_sums = buffer(units * sizeof(Fixed));
    diagonal_sums = buffer(units * sizeof(Fixed));
    sums_workspace = buffer(window_sums_workspace(sums.problem));
    sums.q = static_cast<const __nv_bfloat16*>(dense.q) + (dense.tokens - window) * dense.q_row_stride;
    sums.q_row_stride = dense.q_row_stride;
    sums.kv = dense.kv;
    sums.pool_slots = dense.pool_slots;
    sums.scale = dense.scale;
    sums.workspace = sums_workspace.data();
    sums.columns = column_sums.as<Fixed>();
    sums.diagonals = diagonal_sums.as<Fixed>();
    sums.stream = dense.stream;
    choice.problem = {dense.tokens, dense.heads, budget, budget};
    if (alpha > 0) choice.problem.coverage = coverage_of(alpha, window, 1);
    choice_workspace = buffer(slash_select_workspace(choice.problem));
    columns = buffer(static_cast<std::size_t>(dense.heads * choice.problem.kept_columns()) * 4);
    diagonals = buffer(static_cast<std::size_t>(dense.heads * choice.problem.kept_diagonals()) * 4);
    counts = buffer(static_cast<std::size_t>(dense.heads) * 8);
    row_begin = buffer(static_cast<std::size_t>(dense.heads * choice.problem.query_blocks() + 1) * 8);
    entries = buffer(static_cast<std::size_t>(slash_list_entries(choice.problem)) * sizeof(BlockEntry));
    choice.column_sums = sums.columns;
    choice.diagonal_sums = sums.diagonals;
    choice.workspace = choice_workspace.data();
    choice.columns = columns.as<std::int32_t>();
    choice.diagonals = diagonals.as<std::int32_t>();
    choice.counts = counts.as<std::int32_t>();
    choice.row_begin = row_begin.as<std::int64_t>();
    choice.entries = entries.as<BlockEntry>();
    choice.stream = dense.stream;
  }

  DeviceBuffer column_sums, diagonal_sums, sums_workspace, choice_workspace, columns, diagonals, counts,
      row_begin, entries;
  DeviceWindowSumsParams sums;
  SlashSelectParams choice;
  std::vector<double> sums_times, choice_times, times;
};

}  // namespace cuda_bench
