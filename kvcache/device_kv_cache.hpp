// The paged KV cache of one rank in device memory: block tables on the host (block_tables.hpp), mirrored to
// the device, and slots, page bounds and rows of evicted heads there. Rows of K and V are written by
// qkv_to_cache (runtime/core/device_ops.hpp). Everything is ordered by one stream. Needs no CUDA header.
#pragma once

#include <cstdint>

#include "kvcache/block_tables.hpp"
#include "runtime/core/cuda_memory.hpp"
#include "runtime/core/cuda_stream.hpp"

namespace tessera::cuda {

class DeviceKvCache {
 public:
  struct Room {
    std::int64_t slots = 0;       // for all sequences and layers
    std::int64_t max_tokens = 0;  // of a sequence
    int sequences = 1;            // that are there at a time
  };
  // shape.dtype: bf16 or f16.
  DeviceKvCache(const KvShape& shape, const Room& room, StreamPool& pool, MemoryMeter& meter);

  int add_sequence(std::int64_t max_tokens);
  void remove_sequence(int sequence) { tables_.remove_sequence(sequence); }
  BlockTables& tables() { return tables_; }
  const BlockTables& tables() const { return tables_; }

  // Brings the tables on the device up to date with those on the host, ahead of what comes next in the
  // stream.
  void mirror(int sequence);

  // For kernels over one layer of one sequence. Mirrored tables; not packed.
  KvView view(int sequence, int layer, std::int64_t length) const;
  // (K, stride) of the layer; those of the next sequence follow sequence_stride() further on.
  const std::int32_t* table(int sequence, int layer) const;
  std::int64_t stride() const { return stride_; }
  std::int64_t sequence_stride() const;
  std::byte* slots() { return slots_.data(); }
  std::byte* bounds() { return bounds_.data(); }  // null: none are kept
  std::int64_t capacity() const { return tables_.capacity(); }

  // Keys of positions 0 … tokens − 1 of a layer that holds all of them. out: (T, K, D) in dtype, on the
  // device.
  void gather_keys(int sequence, int layer, std::int64_t tokens, std::byte* out) const;

  // As KvCache::evict. Mirrors the tables, too.
  void evict(int sequence, int layer, const KeptTokens& kept);

  // A decode step of sequences handles[0 … N − 1] (on the device), each with one new row in every layer,
  // whose slots are held: what its kernels read is derived from the handles on the device, so that one graph
  // serves all steps of N sequences.
  void begin_step(const std::int32_t* handles, int sequences);
  void end_step(const std::int32_t* handles, int sequences);
  // Of the step's row n: (N) tables (K, stride) of the layer.
  const std::int32_t* const* step_tables(int layer) const;
  // (N, K) rows of evicted heads, the new one included.
  const std::int32_t* step_rows(int layer) const;
  // (handles, K) rows of evicted heads before the new one.
  const std::int64_t* rows(int layer) const;

 private:
  enum class StepEdge { kBegin, kEnd };
  void upload_rows(int sequence, int layer);
  void launch_step(StepEdge edge, const std::int32_t* handles, int sequences);

  BlockTables tables_;
  StreamPool& pool_;
  StreamView stream_;
  int sequences_;
  std::int64_t stride_;  // columns of a table on the device
  DeviceBuffer slots_;
  DeviceBuffer bounds_;
  DeviceBuffer mirror_;       // (sequences, L, K, stride) int32
  DeviceBuffer rows_;         // (L, sequences, K) int64
  DeviceBuffer step_tables_;  // (L, sequences) pointers
  DeviceBuffer step_rows_;    // (L, sequences, K) int32
  PinnedBuffer staged_;       // (L, K, stride) int32: tables of one sequence on their way
  LayerRange staged_layers_;  // between the first and the last that may be on their way
  CudaEvent staged_copied_;   // all of them have arrived
};

}  // namespace tessera::cuda
