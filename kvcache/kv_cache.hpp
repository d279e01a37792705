// The paged KV cache of one rank in host memory: block tables (block_tables.hpp) and the bytes of their
// slots. See kv_view.hpp for the layout of a slot.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvcache/block_tables.hpp"
#include "runtime/core/memory.hpp"

namespace tessera {

// New rows of one layer of one sequence.
struct KvAppend {
  int sequence = 0;
  int layer = 0;
  std::int64_t tokens = 0;                  // T
  const std::int32_t* positions = nullptr;  // (T) global, ascending
  const float* k = nullptr;                 // (T, K, D), rows row_stride floats apart
  const float* v = nullptr;                 // (T, K, D), likewise
  std::int64_t row_stride = 0;
};

class KvCache {
 public:
  // slots: for all sequences and layers, guests included.
  KvCache(const KvShape& shape, std::int64_t slots, MemoryMeter& meter);
  // A handle; tables for ceil(max_tokens / B) blocks.
  int add_sequence(std::int64_t max_tokens) { return tables_.add_sequence(max_tokens); }
  void remove_sequence(int sequence) { tables_.remove_sequence(sequence); }  // frees its blocks and guests

  // Rounds to dtype. A block's slots, one for each KV head, are allocated when its first row is written; the
  // other rows stay undefined. In an evicted layer the rows go behind those that each head kept.
  // ResourceError when the pool has too few slots: nothing is written then and no slot taken.
  //
  // Bounds of a page are those of its rows so far, as stored: rows of a page must arrive in ascending order,
  // its first one (position % 16 = 0) starts it.
  void append(const KvAppend& append);

  // The table of one layer with what this rank holds itself. Valid until the next call that changes the
  // sequence. length: how many positions exist on all ranks together.
  KvView view(int sequence, int layer, std::int64_t length) const;
  // The same with guests and nothing else, and without bounds.
  KvView guest_view(int sequence, int layer, std::int64_t length) const;
  // Both in one table, without bounds. Valid until the next joint_view of the sequence, too.
  KvView joint_view(int sequence, int layer, std::int64_t length) const;

  // Indices of the blocks of (sequence, layer) that this rank holds itself, ascending: the same list for
  // every KV head, since whole tokens are stored. Not of an evicted layer.
  std::vector<std::int32_t> local_blocks(int sequence, int layer) const {
    return tables_.local_blocks(sequence, layer);
  }

  // Keys at `positions`, all of which this rank holds itself, widened from what is stored. out: (T, K, D).
  // Not of an evicted layer.
  void read_keys(int sequence, int layer, std::span<const std::int32_t> positions, float* out) const;

  // Guests: rows of another rank, for one layer of one sequence at a time. place_guest gives the bytes of a
  // slot to fill, whole or row by row (the same ones when called again for that block); drop_guests frees all
  // of them. Not in an evicted layer, nor where the block is held.
  std::byte* place_guest(int sequence, int layer, int kv_head, std::int64_t block);
  void drop_guests(int sequence, int layer) { tables_.drop_guests(sequence, layer); }

  // Frees local blocks of (sequence, layer) that lie wholly before `position` (window layers need no more of
  // them), or wholly inside positions first … last − 1 (between sinks and a window). Blocks that the last
  // calls emptied are not visited again, so that calling it at every step costs nothing.
  void release_before(int sequence, int layer, std::int64_t position) {
    release_between(sequence, layer, 0, position);
  }
  void release_between(int sequence, int layer, std::int64_t first, std::int64_t last) {
    tables_.release_between(sequence, layer, first, last);
  }

  // Drops all rows of a layer but the kept ones, which are packed: row i of a head moves to row i % 64 of its
  // block i / 64 (KvView::rows_of_head). A head of n rows then holds ceil(n / 64) slots, all of them among
  // those that it held before. Once a layer: positions are forgotten. Bounds are not kept from here on.
  void evict(int sequence, int layer, const KeptTokens& kept);

  // For tests: fills every slot and its bounds with NaN when it is allocated, and rows that eviction leaves
  // behind, so that a kernel that reads a row never written shows.
  void poison_new_slots(bool on);

  const KvShape& shape() const { return tables_.shape(); }
  std::int64_t used_slots() const { return tables_.used_slots(); }
  std::int64_t peak_used_slots() const { return tables_.peak_used_slots(); }
  std::int64_t capacity() const { return tables_.capacity(); }

 private:
  struct RowRun;
  KvView with_bytes(KvView view) const;
  std::byte* slot_at(std::int64_t index) {
    return slots_.data() + static_cast<std::size_t>(index) * shape().slot_bytes();
  }
  std::byte* bounds_at(std::int32_t index) {
    return bounds_.data() + static_cast<std::size_t>(index) * shape().bounds_bytes();
  }
  void store_row(const KvAppend& append, std::int64_t token, int kv_head, std::int32_t slot,
                 std::int64_t row);
  void append_packed(const KvAppend& append);
  void widen_bounds(const KvAppend& append, const RowRun& run, std::int32_t slot, float* scratch);
  void move_rows(std::span<const RowMove> moves);
  void poison_tail(int sequence, int layer, int kv_head);

  BlockTables tables_;
  Buffer slots_;
  Buffer bounds_;
  bool poison_ = false;
};

}  // namespace tessera
