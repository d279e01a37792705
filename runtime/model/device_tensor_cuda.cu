// What takes part of several ranks in the model on the GPU: sums over them, the best of all parts of the
// vocabulary, and waiting for a stream that may wait for a peer.
#include "runtime/core/cuda_memory.hpp"
#include "runtime/core/device_ops.hpp"
#include "runtime/core/error.hpp"
#include "runtime/model/device_model.hpp"
#include "runtime/model/gather_logits.hpp"
#include "runtime/model/tensor_plan.hpp"

namespace tessera::cuda {

void DeviceModel::check_ranks() const {
  const TensorRanks& tp = shape_.tp;
  TESSERA_CHECK(tp.rank >= 0 && tp.rank < tp.size);
  TESSERA_CHECK(weights_.first_vocab_row == vocab_begin(config_.vocab, tp.rank, tp.size));
  TESSERA_CHECK(weights_.first_vocab_row + weights_.vocab_rows ==
                vocab_begin(config_.vocab, tp.rank + 1, tp.size));
  if (!is_shared()) return;
  TESSERA_CHECK(tp.device != nullptr && tp.host != nullptr && tp.device->size() == tp.size &&
                tp.device->rank() == tp.rank && tp.host->size() == tp.size && tp.host->rank() == tp.rank);
}

// rows.projected = x · weightᵀ, of which this rank has some of the inner columns.
void DeviceModel::linear_over_ranks(const LayerCall& call, const LinearShape& shape, const std::byte* x,
                                    const std::byte* weight, const Rows& rows) {
  if (!sums_apart()) {
    linear(shape, x, weight, rows.projected, dtype_);
    return sum_over_ranks(call, rows.projected, shape.rows * shape.columns, dtype_);
  }
  const std::int64_t count = shape.rows * shape.columns;
  linear(shape, x, weight, rows.partial, DType::kF32);
  sum_over_ranks(call, rows.partial, count, DType::kF32);
  convert(rows.partial, DType::kF32, rows.projected, dtype_, count, stream_);
}

// In place; every rank ends with the same bits.
void DeviceModel::sum_over_ranks(const LayerCall& call, void* values, std::int64_t count, DType dtype) {
  if (!is_shared()) return;
  mark(call.clock, call.phase, call.layer, Operation::kCollective);
  shape_.tp.device->all_reduce(values, values, count, nccl_type_of(dtype), NcclSum::kSum, stream_);
}

// Keys order values first, then the lower index: their maximum is the same as on one rank.
void DeviceModel::best_over_ranks(const LayerCall& call, std::int64_t count) {
  if (!is_shared()) return;
  mark(call.clock, call.phase, -1, Operation::kCollective);
  shape_.tp.device->all_reduce(argmax_keys_.data(), argmax_keys_.data(), count, NcclType::kUint64,
                               NcclSum::kMax, stream_);
}

// (N, replicas · H, D): queries of the whole group of this rank's KV head, in the order of the heads, so that
// every replica scores as one rank with the whole group does.
const std::byte* DeviceModel::queries_of_groups(const LayerCall& call, int count) {
  const TensorRanks& tp = shape_.tp;
  const std::int64_t width = q_width();
  mark(call.clock, call.phase, call.layer, Operation::kCollective);
  tp.device->all_gather(step_.queries, all_queries_.data(), count * width, nccl_type_of(dtype_), stream_);
  const int first = tp.rank / kv_replicas_ * kv_replicas_;
  const std::byte* group = all_queries_.data() + bytes_of(first * count * width);
  if (count == 1) return group;
  for (int replica = 0; replica < kv_replicas_; ++replica) {
    copy_rows_on_device(group_queries_.data() + bytes_of(replica * width), bytes_of(kv_replicas_ * width),
                        group + bytes_of(replica * count * width), bytes_of(width), bytes_of(width),
                        static_cast<std::size_t>(count), stream_);
  }
  return group_queries_.data();
}

// Of several ranks: with a deadline, from the last operation that the stream came to.
void DeviceModel::wait_for_stream(std::string_view operation) {
  if (!is_shared()) return stream_.synchronize();
  NcclWait what;
  what.operation = operation;
  const bool replayed = pending_ == Pending::kTimedStep || pending_ == Pending::kPlainStep;
  if (replayed) {
    what.place = [] { return std::string("decode, in the graph of a step"); };
  } else {
    std::size_t told = 0;
    what.progress = [this, told]() mutable {
      const std::size_t reached = clock_.reached();
      if (reached > told && listener_) clock_.tell_last(listener_);
      told = reached;
      return static_cast<std::uint64_t>(reached);
    };
    what.place = [this] { return clock_.place(); };
  }
  shape_.tp.device->wait(stream_, what);
}

void DeviceModel::gather_vocabulary(std::int64_t count, std::vector<float>& logits) const {
  if (is_shared()) logits = tessera::gather_vocabulary(*shape_.tp.host, logits, count, config_.vocab);
}

}  // namespace tessera::cuda
