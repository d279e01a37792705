// A prompt on its way through the layers of DeviceModel. Private to its sources.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/select.hpp"
#include "attention/sparse_prefill_cuda.hpp"
#include "attention/window_sums_cuda.hpp"
#include "parallel/partition.hpp"
#include "runtime/model/device_model.hpp"

namespace tessera::cuda {

struct DeviceModel::Prompt {
  int sequence = 0;
  const SequencePartition& partition;
  std::vector<std::int32_t> positions;  // 0 … T − 1
  Rows rows;                            // hidden, queries, attended of all rows; the others of a chunk
  StreamPool::Block query_rows = {};    // on the device, of query blocks of the method; dense: empty
  DiagnosisSums* diagnosis = nullptr;
  StreamPool::Block lse = {};  // (T, H) fp32 of the layer at hand; empty without diagnosis
  PrefillChoice choice = {};   // of the layer at hand, where somebody listens
  // Of streaming, whose one list serves all heads and layers; on the device its parts.
  PrefillSelection window = {};
  StreamPool::Block window_rows = {}, window_entries = {}, window_columns = {}, window_count = {};
  std::uint64_t window_visible = 0;  // pairs

  std::int64_t tokens() const { return static_cast<std::int64_t>(positions.size()); }
};

// Sums of the last queries' softmax in one layer, by column and, where wanted, by diagonal.
struct DeviceModel::LineSums {
  WindowSumsProblem problem;
  StreamPool::Block columns, diagonals;  // (lists, S) Fixed
};

}  // namespace tessera::cuda
