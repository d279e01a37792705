// What is written in slots: append, page bounds, eviction; and keys read back.
#include <algorithm>
#include <cstring>

#include "kvcache/kv_cache.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

// Below this many floats, starting threads costs more than the copy.
constexpr std::int64_t kParallelFloats = 1 << 16;

}  // namespace

// Neighbouring tokens of a KvAppend that fall into one page. Threads share an append by runs, so that bounds
// of a page have one writer.
struct KvCache::RowRun {
  std::int64_t token = 0;  // the first
  std::int64_t tokens = 0;
};

void KvCache::store_row(const KvAppend& append, std::int64_t token, int kv_head, std::int32_t slot,
                        std::int64_t row) {
  const auto head_dim = static_cast<std::size_t>(shape().head_dim);
  const std::int64_t source = token * append.row_stride + std::int64_t{kv_head} * shape().head_dim;
  std::byte* target = slot_at(slot) + static_cast<std::size_t>(row) * head_dim * size_of(shape().dtype);
  convert_from_float(append.k + source, shape().dtype, target, head_dim);
  convert_from_float(append.v + source, shape().dtype, target + shape().slot_bytes() / 2, head_dim);
}

// Takes the stored keys of a run into the bounds of their page. scratch: (3, D). Stored values are folded one
// by one in order of position, so that where an append ends shows in no bit, not even in the sign of a zero.
void KvCache::widen_bounds(const KvAppend& append, const RowRun& run, std::int32_t slot, float* scratch) {
  const auto head_dim = static_cast<std::size_t>(shape().head_dim);
  const std::size_t row_bytes = head_dim * size_of(shape().dtype);
  float* lowest = scratch;
  float* highest = scratch + head_dim;
  float* key = scratch + 2 * head_dim;
  const auto first = static_cast<std::size_t>(append.positions[run.token] % kBlockTokens);
  std::byte* bounds = bounds_at(slot) + first / kPageTokens * 2 * row_bytes;
  if (first % kPageTokens == 0) {
    convert_to_float(slot_at(slot) + first * row_bytes, shape().dtype, lowest, head_dim);
    std::copy_n(lowest, head_dim, highest);
  } else {
    convert_to_float(bounds, shape().dtype, lowest, 2 * head_dim);
  }
  for (std::int64_t t = run.token; t < run.token + run.tokens; ++t) {
    const auto row = static_cast<std::size_t>(append.positions[t] % kBlockTokens);
    convert_to_float(slot_at(slot) + row * row_bytes, shape().dtype, key, head_dim);
    for (std::size_t d = 0; d < head_dim; ++d) {
      lowest[d] = key[d] < lowest[d] ? key[d] : lowest[d];
      highest[d] = key[d] > highest[d] ? key[d] : highest[d];
    }
  }
  convert_from_float(lowest, shape().dtype, bounds, 2 * head_dim);  // exact: each is a stored value
}

void KvCache::append(const KvAppend& append) {
  TESSERA_CHECK(append.tokens >= 0);
  tables_.extend(append.sequence, append.layer, {append.positions, static_cast<std::size_t>(append.tokens)});
  if (tables_.is_packed(append.sequence, append.layer)) return append_packed(append);
  const std::int32_t* table = tables_.table(append.sequence, append.layer);
  const std::int64_t stride = tables_.stride(append.sequence);

  std::vector<RowRun> runs;
  for (std::int64_t t = 0, previous = -1; t < append.tokens; ++t) {
    const std::int64_t page = append.positions[t] / kPageTokens;
    if (page != previous) runs.push_back({t, 0});
    ++runs.back().tokens;
    previous = page;
  }
  const bool parallel = append.tokens * shape().kv_heads * shape().head_dim >= kParallelFloats;
#pragma omp parallel if (parallel)
  {
    std::vector<float> scratch(shape().page_bounds ? 3 * static_cast<std::size_t>(shape().head_dim) : 0);
#pragma omp for schedule(static)
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const RowRun& run = runs[i];
      const std::int64_t block = append.positions[run.token] / kBlockTokens;
      // Token by token, as they lie: head by head takes twice the time.
      for (std::int64_t t = run.token; t < run.token + run.tokens; ++t) {
        for (int head = 0; head < shape().kv_heads; ++head) {
          const std::int32_t slot = table[head * stride + block];
          store_row(append, t, head, slot, append.positions[t] % kBlockTokens);
        }
      }
      if (!shape().page_bounds) continue;
      for (int head = 0; head < shape().kv_heads; ++head) {
        widen_bounds(append, run, table[head * stride + block], scratch.data());
      }
    }
  }
}

// Into the last rows of each head, which the tables hold already.
void KvCache::append_packed(const KvAppend& append) {
  const std::int32_t* table = tables_.table(append.sequence, append.layer);
  const std::int64_t stride = tables_.stride(append.sequence);
  const std::span<const std::int64_t> rows = tables_.rows(append.sequence, append.layer);
  const bool parallel = append.tokens * shape().kv_heads * shape().head_dim >= kParallelFloats;
#pragma omp parallel for schedule(static) if (parallel)
  for (std::int64_t t = 0; t < append.tokens; ++t) {
    for (int head = 0; head < shape().kv_heads; ++head) {
      const std::int64_t row = rows[static_cast<std::size_t>(head)] - append.tokens + t;
      store_row(append, t, head, table[head * stride + row / kBlockTokens], row % kBlockTokens);
    }
  }
}

void KvCache::read_keys(int sequence, int layer, std::span<const std::int32_t> positions, float* out) const {
  TESSERA_CHECK(!tables_.is_packed(sequence, layer));
  const std::int32_t* table = tables_.table(sequence, layer);  // head 0 stands for all
  const std::int64_t stride = tables_.stride(sequence);
  const std::int64_t end = tables_.max_tokens(sequence);
  for (const std::int32_t position : positions) {
    TESSERA_CHECK(position >= 0 && position < end && table[position / kBlockTokens] != kNoSlot);
  }
  const auto head_dim = static_cast<std::size_t>(shape().head_dim);
  const std::size_t row_bytes = head_dim * size_of(shape().dtype);
  const auto tokens = static_cast<std::int64_t>(positions.size());
  const bool parallel = tokens * shape().kv_heads * shape().head_dim >= kParallelFloats;
#pragma omp parallel for schedule(static) if (parallel)
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int32_t position = positions[static_cast<std::size_t>(t)];
    const auto row = static_cast<std::size_t>(position % kBlockTokens);
    for (int head = 0; head < shape().kv_heads; ++head) {
      const auto slot = static_cast<std::size_t>(table[head * stride + position / kBlockTokens]);
      const std::byte* source = slots_.data() + slot * shape().slot_bytes() + row * row_bytes;
      convert_to_float(source, shape().dtype, out + (t * shape().kv_heads + head) * shape().head_dim,
                       head_dim);
    }
  }
}

void KvCache::move_rows(std::span<const RowMove> moves) {
  const std::size_t row_bytes = static_cast<std::size_t>(shape().head_dim) * size_of(shape().dtype);
  const std::size_t value_offset = shape().slot_bytes() / 2;
  const auto row_at = [&](std::int64_t row) {
    return slot_at(row / kBlockTokens) + static_cast<std::size_t>(row % kBlockTokens) * row_bytes;
  };
  for (const RowMove& move : moves) {
    const std::byte* source = row_at(move.source);
    std::byte* target = row_at(move.target);
    std::memcpy(target, source, row_bytes);
    std::memcpy(target + value_offset, source + value_offset, row_bytes);
  }
}

// What lies behind the kept rows of a head in its last slot.
void KvCache::poison_tail(int sequence, int layer, int kv_head) {
  const std::int64_t rows = tables_.rows(sequence, layer)[static_cast<std::size_t>(kv_head)];
  if (rows % kBlockTokens == 0) return;
  const std::int32_t* table = tables_.table(sequence, layer) + kv_head * tables_.stride(sequence);
  std::byte* last = slot_at(table[rows / kBlockTokens]);
  const std::size_t row_bytes = static_cast<std::size_t>(shape().head_dim) * size_of(shape().dtype);
  const std::size_t value_offset = shape().slot_bytes() / 2;
  const std::size_t kept = static_cast<std::size_t>(rows % kBlockTokens) * row_bytes;
  std::memset(last + kept, 0xff, value_offset - kept);
  std::memset(last + value_offset + kept, 0xff, value_offset - kept);
}

void KvCache::evict(int sequence, int layer, const KeptTokens& kept) {
  const std::vector<std::vector<RowMove>> moves = tables_.evict(sequence, layer, kept);
#pragma omp parallel for schedule(static)
  for (std::size_t head = 0; head < moves.size(); ++head) {
    move_rows(moves[head]);
    if (poison_) poison_tail(sequence, layer, static_cast<int>(head));
  }
}

}  // namespace tessera
