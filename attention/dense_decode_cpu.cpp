#include <algorithm>
#include <vector>

#include "attention/decode_splits.hpp"
#include "attention/dense.hpp"
#include "runtime/core/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/dense_decode_cpu.cpp"
#include <hwy/foreach_target.h>

#include "attention/decode_tiles.hpp"

// Shared by the targets; foreach_target compiles this file several times.
#ifndef TESSERA_ATTENTION_DENSE_DECODE_BLOCKS
#define TESSERA_ATTENTION_DENSE_DECODE_BLOCKS
namespace tessera {

// Blocks first … last − 1 of a KV head, cut to the positions oldest … newest − 1.
struct BlockSource {
  const KvView& kv;
  int kv_head;
  std::int64_t first;
  std::int64_t last;
  std::int64_t oldest;
  std::int64_t newest;

  void next(DecodeKeys& tile) {
    tile.first = tile.last = 0;
    for (; first < last && tile.last == 0; ++first) {
      const std::int64_t start = first * kBlockTokens;
      const std::int64_t low = std::max(start, oldest);
      const std::int64_t high = std::min(start + kBlockTokens, newest);
      if (low >= high || !kv.holds(kv_head, first)) continue;
      for (int i = 0; i < kBlockTokens / kPageTokens; ++i) {
        tile.place(static_cast<std::size_t>(i), kv, kv_head, start / kPageTokens + i);
      }
      tile.first = static_cast<std::size_t>(low - start);
      tile.last = static_cast<std::size_t>(high - start);
    }
  }
};

inline std::int64_t oldest_key(const DecodeAttentionParams& p, int sequence) {
  return p.window == 0 ? 0 : std::max<std::int64_t>(0, std::int64_t{p.positions[sequence]} - p.window + 1);
}

}  // namespace tessera
#endif

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {

void decode_task(const DecodeAttentionParams& p, const DecodeTask& task, float* out, float* lse,
                 float* workspace) {
  const KvView& kv = p.kv[task.sequence];
  const std::int64_t newest = std::min<std::int64_t>(p.positions[task.sequence] + 1, kv.length);
  const BlockSource source{kv,        task.first_head / task.heads, task.first,
                           task.last, oldest_key(p, task.sequence), newest};
  decode_rows(p, task, source, workspace, out, lse);
}

}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {

HWY_EXPORT(decode_task);

constexpr std::int64_t kSplitBlocks = 16;  // 1,024 keys a task, whatever the number of threads

}  // namespace

void decode_attention(const DecodeAttentionParams& p) {
  if (p.sequences == 0 || p.heads == 0) return;
  const int kv_heads = p.kv[0].kv_heads;
  const int head_dim = p.kv[0].head_dim;
  const int group = p.heads / kv_heads;

  DecodeSplits splits;
  for (int sequence = 0; sequence < p.sequences; ++sequence) {
    // Splits begin at multiples of kSplitBlocks, so that they do not move while a sequence grows.
    const std::int64_t first = oldest_key(p, sequence) / kBlockTokens / kSplitBlocks * kSplitBlocks;
    const std::int64_t end =
        std::min<std::int64_t>(p.kv[sequence].blocks, p.positions[sequence] / kBlockTokens + 1);
    for (int kv_head = 0; kv_head < kv_heads; ++kv_head) {
      splits.add(sequence, kv_head * group, group, first, end, kSplitBlocks);
    }
  }
  splits.run(p, head_dim, decode_workspace(head_dim, group),
             [&p](const DecodeTask& task, float* out, float* lse, float* workspace) {
               HWY_DYNAMIC_DISPATCH(decode_task)(p, task, out, lse, workspace);
             });
}

}  // namespace tessera
#endif  // HWY_ONCE
