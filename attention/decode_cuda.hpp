// Decode attention on the GPU: one query row of each of N sequences against keys named by block tables, in
// three launches that never read anything back, so that one CUDA graph replays while lengths change:
//   plan_decode     how many pages each list of keys has, and an equal share of them for each CTA
//   attend_decode   partial results, then their merge by log-sum-exp in the order of the keys (two kernels)
// A plan serves every layer in which the lists have the same numbers of pages. Results are the same bits on
// every run with the same number of CTAs. Semantics are those of attention/dense.hpp and
// attention/sparse.hpp: lse natural log; a row that sees nothing gets out = 0 and lse = −inf; blocks without
// a slot are skipped.
//
// A *list* is the keys that some neighbouring query heads read together: one for each KV head (lists = K, the
// G heads of a group share it), or one for each query head (lists = H). All pointers are device pointers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/core/device.hpp"
#include "runtime/core/dtype.hpp"

namespace tessera::cuda {

struct DecodeProblem {
  int sequences = 0;                                            // N
  int heads = 0;                                                // H
  int kv_heads = 0;                                             // K; head h reads KV head h / (H / K)
  int head_dim = 0;                                             // D: 64, 128 or 256
  int lists = 0;                                                // of a sequence: K or H
  constexpr int heads_a_list() const { return heads / lists; }  // 1 … 16
  constexpr int all_lists() const { return sequences * lists; }
};

// How: a persistent grid. A function of the problem and the chip alone.
struct DecodeConfig {
  int ctas = 0;
  int warps = 0;          // of a CTA
  int stages = 0;         // pages under way a warp
  int merge_quads = 0;    // threads that read one partial result, 4 channels each
  int merge_threads = 0;  // of a CTA of the merge
};
DecodeConfig choose_decode_config(const DecodeProblem& problem, int multiprocessors);

std::size_t decode_plan_bytes(const DecodeProblem& problem, const DecodeConfig& config);
std::size_t decode_workspace_bytes(const DecodeProblem& problem, const DecodeConfig& config);

// Which keys the rows see. Dense: positions alone. Exactly one of window, rows_of_head and pages may be set.
struct DecodeReach {
  const std::int32_t* positions = nullptr;  // (N) of the row; its key is in the cache
  const std::int32_t* lengths = nullptr;  // (N) keys at positions ≥ length do not exist; null: position + 1
  std::int32_t window = 0;                // positions > position − window; 0: none
  std::int32_t sinks = 0;                 // and positions < sinks
  const std::int32_t* rows_of_head = nullptr;  // (N, K) rows that eviction packed, all visible
  // Lists of ascending pages: list i has pages[page_begin[i] …], or pages[i · page_stride …] where page_begin
  // is null, page_count[i] of them.
  const std::int32_t* pages = nullptr;
  const std::int32_t* page_begin = nullptr;  // (N · lists)
  std::int64_t page_stride = 0;              // room for every planned page
  const std::int32_t* page_count = nullptr;  // (N · lists)
  // With pages: −1 plans by page_count. Else that many finished pages and the current one are planned, fewer
  // where the sequence is shorter, so that the plan may come before the lists; page_count must not exceed it.
  std::int32_t budget_pages = -1;
};

struct DecodePlanParams {
  DecodeProblem problem;
  DecodeConfig config;
  DecodeReach reach;
  std::byte* plan = nullptr;  // decode_plan_bytes
  bool overlaps_previous = false;
  StreamView stream;
};
void plan_decode(const DecodePlanParams& p);

struct DecodeAttendParams {
  DecodeProblem problem;
  DecodeConfig config;
  DecodeReach reach;  // as planned
  const std::byte* plan = nullptr;
  std::byte* workspace = nullptr;    // decode_workspace_bytes; used until the call's work is done
  DType dtype = DType::kBF16;        // of q, keys and values: bf16 or fp16
  const std::byte* q = nullptr;      // (N, H, D), contiguous
  const std::byte* slots = nullptr;  // base of the pool; slot = K (B, D), V (B, D)
  std::size_t slot_bytes = 0;
  const std::int32_t* const* tables = nullptr;  // (N): each (K, table_stride), slot of a block or kNoSlot
  std::int64_t table_stride = 0;
  float scale = 0;
  std::byte* out = nullptr;        // (N, H, D)
  DType out_dtype = DType::kBF16;  // dtype, or f32
  float* lse = nullptr;            // (N, H), or null
  // Start before the kernel before has ended; its end is waited for. Settled: what this one reads first
  // (plan, tables, positions, lengths, rows_of_head, and keys and values save those of the newest page of a
  // list, but not q and page lists) was written before any kernel that may still run when this one starts.
  // Kernels of this room let the next one start only once all before them has ended, so behind them that is
  // the kernel just before; the merge lets it start sooner, so behind attend_decode that is also the kernel
  // that attends.
  bool overlaps_previous = false;
  bool settled = false;
  StreamView stream;
};
void attend_decode(const DecodeAttendParams& p);

}  // namespace tessera::cuda
