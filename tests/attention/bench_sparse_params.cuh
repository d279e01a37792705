// What the benches of sparse prefill ask for beside their lists: all that a dense problem already says.
#pragma once

#include "attention/sparse_prefill_cuda.hpp"
#include "tests/attention/bench_prefill_problem.cuh"

namespace cuda_bench {

// rows: (row_blocks) of the whole sequence, on the device.
inline SparsePrefillParams sparse_params(const PrefillParams& dense, const PrefillLists& lists,
                                         const DeviceBuffer& rows, std::int64_t row_blocks,
                                         DeviceBuffer& workspace) {
  SparsePrefillParams p;
  p.tokens = dense.tokens;
  p.heads = dense.heads;
  p.q = dense.q;
  p.q_row_stride = dense.q_row_stride;
  p.rows = rows.as<const QueryRows>();
  p.row_blocks = row_blocks;
  p.lists = lists;
  p.kv = dense.kv;
  p.pool_slots = dense.pool_slots;
  p.scale = dense.scale;
  p.out = dense.out;
  p.lse = dense.lse;
  p.workspace = workspace.data();
  p.counters = dense.counters;
  p.stream = dense.stream;
  return p;
}

}  // namespace cuda_bench
