// Quest on the GPU: the score of every finished page of every list, and the pages that a decode step reads.
// Definitions and order of additions are those of attention/page_scores.hpp, so that the same bits of Q and
// of the bounds give the same bits of scores and the same choice as on the CPU. Two launches; nothing is read
// back, positions may change between replays of a graph. All pointers are device pointers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/core/device.hpp"
#include "runtime/core/dtype.hpp"

namespace tessera::cuda {

struct PageSelectProblem {
  int sequences = 0;            // N, up to 256
  int heads = 0;                // H
  int kv_heads = 0;             // K
  int head_dim = 0;             // D: 64, 128 or 256
  bool per_query_head = false;  // lists of a sequence: H, one for each query head; else K
  constexpr int lists() const { return per_query_head ? heads : kv_heads; }
  constexpr int all_lists() const { return sequences * lists(); }
};

// What score_pages_on_device writes for a page whose block this rank does not hold: a NaN that no arithmetic
// gives.
inline constexpr std::uint32_t kPageNotHeld = 0xffffffffu;

struct DevicePageScoreParams {
  PageSelectProblem problem;
  int multiprocessors = 0;
  DType q_dtype = DType::kBF16;                 // bf16, fp16 or f32
  const std::byte* q = nullptr;                 // (N, H, D)
  const std::int32_t* positions = nullptr;      // (N): pages before positions / 16 are finished and scored
  const std::int32_t* const* tables = nullptr;  // (N): each (K, table_stride), slot of a block or kNoSlot
  std::int64_t table_stride = 0;
  DType bounds_dtype = DType::kBF16;  // bf16, fp16 or f32
  const std::byte* bounds = nullptr;  // (slots, 4 pages, 2, D): lowest, highest
  float* scores = nullptr;            // (N · lists, score_stride)
  std::int64_t score_stride = 0;      // at least the finished pages of the longest sequence
  // Settled: the kernel before did not write positions, tables or bounds of finished pages.
  bool overlaps_previous = false;
  bool settled = false;
  StreamView stream;
};
void score_pages_on_device(const DevicePageScoreParams& p);

// The budget_pages highest of the finished pages, ties to the lower page, NaN last, and the current page; all
// pages where the budget reaches. Pages that are not held are named only in that last case, as on the CPU.
struct DevicePageSelectParams {
  PageSelectProblem problem;
  int budget_pages = 0;                     // tokens / 16
  const std::int32_t* positions = nullptr;  // (N)
  const float* scores = nullptr;            // (N · lists, score_stride)
  std::int64_t score_stride = 0;
  std::int32_t* pages = nullptr;       // (N · lists, page_stride), ascending
  std::int64_t page_stride = 0;        // at least min(budget_pages, score_stride) + 1
  std::int32_t* page_begin = nullptr;  // (N · lists) index of a list's first page: list · page_stride
  std::int32_t* page_count = nullptr;  // (N · lists)
  bool overlaps_previous = false;
  bool settled = false;  // the kernel before did not write positions
  StreamView stream;
};
void select_pages_on_device(const DevicePageSelectParams& p);

}  // namespace tessera::cuda
