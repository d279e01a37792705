// Dense prefill attention on a Hopper GPU, the counterpart of prefill_attention in dense.hpp: causal,
// grouped-query, optional window, through the block table, partial over the blocks that the table holds.
// Activations and cache bf16 or fp16, scores, softmax and lse fp32.
#pragma once

#include <cstdint>

#include "kvcache/kv_view.hpp"
#include "runtime/core/device.hpp"

namespace tessera::cuda {

// All pointers are of the device, also those in kv, whose dtype (bf16 or fp16) is that of q and out.
struct PrefillParams {
  std::int64_t tokens = 0;        // T
  int heads = 0;                  // H; head h reads KV head h / (H / K)
  const void* q = nullptr;        // (T, H, D), 16-byte aligned; heads contiguous within a row
  std::int64_t q_row_stride = 0;  // elements between rows, a multiple of 8
  // (ceil(T / M)) position of the first row of each query block of M = 64 rows; its other rows follow it.
  // Blocks ascend; they need not adjoin, so that a rank can bring several ranges of the sequence.
  const std::int32_t* block_positions = nullptr;
  KvView kv;                    // not packed
  std::int64_t pool_slots = 0;  // slots in the pool behind kv.slots
  float scale = 0;              // > 0
  std::int32_t window = 0;      // 0: none
  void* out = nullptr;          // (T, H, D) contiguous, 16-byte aligned
  float* lse = nullptr;         // (T, H) natural log, or null
  // (2) two words of this stream's own, zero before the first launch; every launch leaves them zero.
  std::uint32_t* counters = nullptr;
  StreamView stream;
  // Keys a step of the wgmma kernel: 0 chooses (128; 64 with D = 256). D = 128 can also have 192.
  int tile_keys = 0;
};

// D = 64, 128 or 256. On compute capability 9.0 by wgmma, elsewhere (8.0 and later) by mma.sync.
void prefill_attention(const PrefillParams& p);
void prefill_attention_wgmma(const PrefillParams& p);
void prefill_attention_mma(const PrefillParams& p);  // needs no counters

// InternalError unless the kernels can take it; false: there is nothing to do.
bool check_prefill(const PrefillParams& p);

}  // namespace tessera::cuda
