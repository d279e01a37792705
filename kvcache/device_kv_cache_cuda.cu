#include <algorithm>

#include "kvcache/device_kv_cache.hpp"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostBlocks = 4096;  // of a kernel that strides over its work
constexpr std::int64_t kChunkBytes = 16;

unsigned blocks_for(std::int64_t work) {
  return static_cast<unsigned>(std::min(ceil_div(work, kThreads), kMostBlocks));
}

// ---- eviction ---------------------------------------------------------------------------------------------

// Rows of K and V leave their slots for `rows` (moves, 2, row), or come from there. In two launches, since
// the slots that rows come from and go to overlap.
struct MoveArgs {
  const RowMove* moves;
  std::int64_t count;
  std::byte* slots;
  std::int64_t slot_bytes;
  std::int64_t row_bytes;
  std::byte* rows;
};

template <bool kGather>
__global__ void __launch_bounds__(kThreads) move_rows_kernel(const MoveArgs p) {
  const std::int64_t chunks = p.row_bytes / kChunkBytes;
  const std::int64_t work = p.count * 2 * chunks;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < work;
       i += std::int64_t{gridDim.x} * kThreads) {
    const std::int64_t chunk = i % chunks;
    const std::int64_t half = i / chunks % 2;  // 0: K, 1: V
    const std::int64_t move = i / chunks / 2;
    const std::int64_t row = kGather ? p.moves[move].source : p.moves[move].target;
    auto* in_slot = reinterpret_cast<uint4*>(p.slots + row / kBlockTokens * p.slot_bytes +
                                             half * (p.slot_bytes / 2) + row % kBlockTokens * p.row_bytes) +
                    chunk;
    auto* apart = reinterpret_cast<uint4*>(p.rows + (move * 2 + half) * p.row_bytes) + chunk;
    if (kGather) {
      *apart = *in_slot;
    } else {
      *in_slot = *apart;
    }
  }
}

// ---- keys read back ---------------------------------------------------------------------------------------

struct GatherArgs {
  const std::byte* slots;
  std::int64_t slot_bytes;
  std::int64_t row_bytes;
  const std::int32_t* table;  // (K, stride)
  std::int64_t stride;
  int kv_heads;
  std::int64_t tokens;
  std::byte* out;  // (T, K, D)
};

__global__ void __launch_bounds__(kThreads) gather_keys_kernel(const GatherArgs p) {
  const std::int64_t chunks = p.row_bytes / kChunkBytes;
  const std::int64_t work = p.tokens * p.kv_heads * chunks;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < work;
       i += std::int64_t{gridDim.x} * kThreads) {
    const std::int64_t head = i / chunks % p.kv_heads;
    const std::int64_t token = i / chunks / p.kv_heads;
    const std::int64_t slot = p.table[head * p.stride + token / kBlockTokens];
    const auto* key =
        reinterpret_cast<const uint4*>(p.slots + slot * p.slot_bytes + token % kBlockTokens * p.row_bytes);
    reinterpret_cast<uint4*>(p.out)[i] = key[i % chunks];
  }
}

// ---- a step of decoding -----------------------------------------------------------------------------------

struct StepArgs {
  const std::int32_t* handles;  // (N)
  int count;                    // N
  int layers;
  int kv_heads;
  int sequences;               // room for: strides of the arrays below
  const std::int32_t* mirror;  // (sequences, L, K, stride)
  std::int64_t stride;
  std::int64_t* rows;           // (L, sequences, K)
  const std::int32_t** tables;  // (L, sequences)
  std::int32_t* step_rows;      // (L, N, K), layers sequences · K apart
};

__global__ void __launch_bounds__(kThreads) begin_step_kernel(const StepArgs p) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= std::int64_t{p.layers} * p.count * p.kv_heads) return;
  const std::int64_t head = i % p.kv_heads;
  const std::int64_t n = i / p.kv_heads % p.count;
  const std::int64_t layer = i / p.kv_heads / p.count;
  const std::int64_t handle = p.handles[n];
  const std::int64_t rows = p.rows[(layer * p.sequences + handle) * p.kv_heads + head];
  p.step_rows[(layer * p.sequences + n) * p.kv_heads + head] = static_cast<std::int32_t>(rows) + 1;
  if (head == 0) {
    p.tables[layer * p.sequences + n] = p.mirror + (handle * p.layers + layer) * p.kv_heads * p.stride;
  }
}

__global__ void __launch_bounds__(kThreads) end_step_kernel(const StepArgs p) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= std::int64_t{p.layers} * p.count * p.kv_heads) return;
  const std::int64_t head = i % p.kv_heads;
  const std::int64_t n = i / p.kv_heads % p.count;
  const std::int64_t layer = i / p.kv_heads / p.count;
  p.rows[(layer * p.sequences + p.handles[n]) * p.kv_heads + head] += 1;
}

}  // namespace

// ---- host -------------------------------------------------------------------------------------------------

DeviceKvCache::DeviceKvCache(const KvShape& shape, const Room& room, StreamPool& pool, MemoryMeter& meter)
    : tables_(shape, room.slots),
      pool_(pool),
      stream_(pool.stream()),
      sequences_(room.sequences),
      stride_(ceil_div(room.max_tokens, kBlockTokens)),
      staged_copied_(stream_.device) {
  TESSERA_CHECK(shape.dtype == DType::kBF16 || shape.dtype == DType::kF16);
  TESSERA_CHECK(shape.head_dim % 8 == 0 && room.sequences > 0);
  const Device device = stream_.device;
  const auto slots = static_cast<std::size_t>(room.slots);
  const auto heads = static_cast<std::size_t>(shape.layers) * static_cast<std::size_t>(shape.kv_heads);
  const auto sequences = static_cast<std::size_t>(room.sequences);
  const std::size_t table_bytes = heads * static_cast<std::size_t>(stride_) * sizeof(std::int32_t);
  slots_ = DeviceBuffer(slots * shape.slot_bytes(), device, MemoryKind::kKv, meter);
  if (shape.page_bounds) bounds_ = DeviceBuffer(slots * shape.bounds_bytes(), device, MemoryKind::kKv, meter);
  mirror_ = DeviceBuffer(sequences * table_bytes, device, MemoryKind::kWorkspace, meter);
  rows_ = DeviceBuffer(sequences * heads * sizeof(std::int64_t), device, MemoryKind::kWorkspace, meter);
  step_rows_ = DeviceBuffer(sequences * heads * sizeof(std::int32_t), device, MemoryKind::kWorkspace, meter);
  step_tables_ = DeviceBuffer(sequences * static_cast<std::size_t>(shape.layers) * sizeof(void*), device,
                              MemoryKind::kWorkspace, meter);
  staged_ = PinnedBuffer(table_bytes);
  fill_bytes(mirror_.data(), 0xff, mirror_.bytes(), stream_);  // kNoSlot
  fill_bytes(rows_.data(), 0, rows_.bytes(), stream_);
}

int DeviceKvCache::add_sequence(std::int64_t max_tokens) {
  TESSERA_CHECK(ceil_div(max_tokens, kBlockTokens) <= stride_);
  const int sequence = tables_.add_sequence(max_tokens);
  if (sequence >= sequences_) {
    tables_.remove_sequence(sequence);
    throw InternalError("the device cache has room for {} sequences, and all are taken", sequences_);
  }
  return sequence;
}

std::int64_t DeviceKvCache::sequence_stride() const {
  const KvShape& shape = tables_.shape();
  return std::int64_t{shape.layers} * shape.kv_heads * stride_;
}

void DeviceKvCache::mirror(int sequence) {
  const LayerRange changed = tables_.take_changed(sequence);
  if (changed.first == changed.last) return;
  const int kv_heads = tables_.shape().kv_heads;
  const std::int64_t held = tables_.stride(sequence);
  if (changed.first < staged_layers_.last && staged_layers_.first < changed.last) {
    staged_copied_.synchronize();
    staged_layers_ = {};
  }
  for (int layer = changed.first; layer < changed.last; ++layer) {
    const std::int32_t* source = tables_.table(sequence, layer);
    for (int head = 0; head < kv_heads; ++head) {
      std::int32_t* target = staged_.as<std::int32_t>() + (std::int64_t{layer} * kv_heads + head) * stride_;
      std::fill(std::copy_n(source + head * held, held, target), target + stride_, kNoSlot);
    }
  }
  const std::int64_t first = std::int64_t{changed.first} * kv_heads * stride_;
  const std::int64_t count = std::int64_t{changed.last - changed.first} * kv_heads * stride_;
  copy_to_device(mirror_.as<std::int32_t>() + sequence * sequence_stride() + first,
                 staged_.as<std::int32_t>() + first, static_cast<std::size_t>(count) * sizeof(std::int32_t),
                 stream_);
  staged_copied_.record(stream_);
  const bool none = staged_layers_.first == staged_layers_.last;
  staged_layers_ = none ? changed
                        : LayerRange{std::min(staged_layers_.first, changed.first),
                                     std::max(staged_layers_.last, changed.last)};
}

const std::int32_t* DeviceKvCache::table(int sequence, int layer) const {
  return mirror_.as<std::int32_t>() + sequence * sequence_stride() +
         std::int64_t{layer} * tables_.shape().kv_heads * stride_;
}

KvView DeviceKvCache::view(int sequence, int layer, std::int64_t length) const {
  KvView view = tables_.view(sequence, layer, length);
  TESSERA_CHECK(view.rows_of_head == nullptr);
  view.slots = slots_.data();
  view.table = table(sequence, layer);
  view.table_stride = stride_;
  view.bounds = bounds_.data();
  return view;
}

void DeviceKvCache::gather_keys(int sequence, int layer, std::int64_t tokens, std::byte* out) const {
  const KvShape& shape = tables_.shape();
  TESSERA_CHECK(!tables_.is_packed(sequence, layer) && tokens <= tables_.max_tokens(sequence));
  GatherArgs args;
  args.slots = slots_.data();
  args.slot_bytes = static_cast<std::int64_t>(shape.slot_bytes());
  args.row_bytes = std::int64_t{shape.head_dim} * static_cast<std::int64_t>(size_of(shape.dtype));
  args.table = table(sequence, layer);
  args.stride = stride_;
  args.kv_heads = shape.kv_heads;
  args.tokens = tokens;
  args.out = out;
  const std::int64_t work = tokens * shape.kv_heads * (args.row_bytes / kChunkBytes);
  launch(gather_keys_kernel, {.grid = dim3(blocks_for(work)), .block = dim3(kThreads)}, stream_, args);
}

void DeviceKvCache::evict(int sequence, int layer, const KeptTokens& kept) {
  const KvShape& shape = tables_.shape();
  std::vector<RowMove> moves;
  for (const std::vector<RowMove>& head : tables_.evict(sequence, layer, kept)) {
    moves.insert(moves.end(), head.begin(), head.end());
  }
  if (!moves.empty()) {
    MoveArgs args;
    args.count = static_cast<std::int64_t>(moves.size());
    args.slots = slots_.data();
    args.slot_bytes = static_cast<std::int64_t>(shape.slot_bytes());
    args.row_bytes = std::int64_t{shape.head_dim} * static_cast<std::int64_t>(size_of(shape.dtype));
    const StreamPool::Block on_device = pool_.take_array<RowMove>(args.count);
    const StreamPool::Block rows = pool_.take(static_cast<std::size_t>(args.count * 2 * args.row_bytes));
    // From memory that is not pinned: the call returns once the source is free.
    copy_to_device(on_device.data(), moves.data(), moves.size() * sizeof(RowMove), stream_);
    args.moves = on_device.as<const RowMove>();
    args.rows = rows.data();
    const LaunchShape grid = {.grid = dim3(blocks_for(args.count * 2 * (args.row_bytes / kChunkBytes))),
                              .block = dim3(kThreads)};
    launch(move_rows_kernel<true>, grid, stream_, args);
    launch(move_rows_kernel<false>, grid, stream_, args);
  }
  mirror(sequence);
  upload_rows(sequence, layer);
}

void DeviceKvCache::upload_rows(int sequence, int layer) {
  const std::span<const std::int64_t> rows = tables_.rows(sequence, layer);
  const std::int64_t first = (std::int64_t{layer} * sequences_ + sequence) * tables_.shape().kv_heads;
  // Not pinned: copied before the call returns.
  copy_to_device(rows_.as<std::int64_t>() + first, rows.data(), rows.size_bytes(), stream_);
}

void DeviceKvCache::begin_step(const std::int32_t* handles, int sequences) {
  launch_step(StepEdge::kBegin, handles, sequences);
}

void DeviceKvCache::end_step(const std::int32_t* handles, int sequences) {
  launch_step(StepEdge::kEnd, handles, sequences);
}

void DeviceKvCache::launch_step(StepEdge edge, const std::int32_t* handles, int sequences) {
  const KvShape& shape = tables_.shape();
  TESSERA_CHECK(sequences <= sequences_);
  const StepArgs args = {handles,
                         sequences,
                         shape.layers,
                         shape.kv_heads,
                         sequences_,
                         mirror_.as<std::int32_t>(),
                         stride_,
                         rows_.as<std::int64_t>(),
                         step_tables_.as<const std::int32_t*>(),
                         step_rows_.as<std::int32_t>()};
  const std::int64_t work = std::int64_t{shape.layers} * sequences * shape.kv_heads;
  launch(edge == StepEdge::kBegin ? begin_step_kernel : end_step_kernel,
         {.grid = dim3(static_cast<unsigned>(ceil_div(work, kThreads))), .block = dim3(kThreads)}, stream_,
         args);
}

const std::int32_t* const* DeviceKvCache::step_tables(int layer) const {
  return step_tables_.as<const std::int32_t*>() + std::int64_t{layer} * sequences_;
}

const std::int32_t* DeviceKvCache::step_rows(int layer) const {
  return step_rows_.as<std::int32_t>() + std::int64_t{layer} * sequences_ * tables_.shape().kv_heads;
}

const std::int64_t* DeviceKvCache::rows(int layer) const {
  return rows_.as<std::int64_t>() + std::int64_t{layer} * sequences_ * tables_.shape().kv_heads;
}

}  // namespace tessera::cuda
