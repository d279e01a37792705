// The paged KV cache of one rank: a pool of slots, and for each sequence a table that maps a logical block
// (sequence, layer, KV head, index) to a slot. See kv_view.hpp for the layout of a slot.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kvcache/kv_view.hpp"
#include "runtime/core/memory.hpp"

namespace tessera {

struct KvShape {
  int layers = 0;    // L
  int kv_heads = 0;  // K of this rank
  int head_dim = 0;  // D
  DType dtype = DType::kF32;

  std::size_t slot_bytes() const {
    return 2ull * kBlockTokens * static_cast<std::size_t>(head_dim) * size_of(dtype);
  }
};

// Fixed number of equal slots in one allocation; free slots are reused last-in first-out.
class BlockPool {
 public:
  BlockPool(std::int64_t slots, std::size_t slot_bytes, MemoryMeter& meter);
  std::int32_t allocate();  // ResourceError when none is free
  void free(std::int32_t slot);
  std::byte* slot(std::int32_t index) {
    return buffer_.data() + static_cast<std::size_t>(index) * slot_bytes_;
  }
  const std::byte* base() const { return buffer_.data(); }
  std::int64_t capacity() const { return capacity_; }
  std::int64_t used() const { return capacity_ - static_cast<std::int64_t>(free_.size()); }
  std::int64_t peak_used() const { return peak_used_; }

 private:
  Buffer buffer_;
  std::size_t slot_bytes_;
  std::int64_t capacity_;
  std::int64_t peak_used_ = 0;
  std::vector<std::int32_t> free_;
};

// New rows of one layer of one sequence.
struct KvAppend {
  int sequence = 0;
  int layer = 0;
  std::int64_t tokens = 0;                  // T
  const std::int32_t* positions = nullptr;  // (T) global; blocks are allocated when first written
  const float* k = nullptr;                 // (T, K, D), rows row_stride floats apart
  const float* v = nullptr;                 // (T, K, D), likewise
  std::int64_t row_stride = 0;
};

class KvCache {
 public:
  // slots: for all sequences and layers, guests included.
  KvCache(const KvShape& shape, std::int64_t slots, MemoryMeter& meter);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  int add_sequence(std::int64_t max_tokens);  // a handle; tables for ceil(max_tokens / B) blocks
  void remove_sequence(int sequence);         // frees its blocks and guests

  // Rounds to dtype. A block's slots, one for each KV head, are allocated when its first row is written; the
  // other rows stay undefined. ResourceError when the pool is exhausted: rows of earlier blocks are then
  // written.
  void append(const KvAppend& append);

  // The table of one layer with what this rank holds, guests included. Valid until the next call that changes
  // the sequence. length: how many positions exist on all ranks together.
  KvView view(int sequence, int layer, std::int64_t length) const;

  // Indices of the blocks of (sequence, layer) that this rank holds itself, guests left out, ascending: the
  // same list for every KV head, since whole tokens are stored.
  std::vector<std::int32_t> local_blocks(int sequence, int layer) const;

  // Guests: blocks of another rank, for one layer of one sequence at a time. place_guest gives the slot's
  // bytes to fill (the same ones when called again for that block); drop_guests frees all of them and
  // restores the local table.
  std::byte* place_guest(int sequence, int layer, int kv_head, std::int64_t block);
  void drop_guests(int sequence, int layer);

  // Frees local blocks of (sequence, layer) that lie wholly before `position` (window layers need no more of
  // them).
  void release_before(int sequence, int layer, std::int64_t position);

  // For tests: fills every slot with NaN when it is allocated, so that a kernel that reads a row never
  // written shows.
  void poison_new_slots(bool on) { poison_ = on; }

  const KvShape& shape() const { return shape_; }
  std::int64_t used_slots() const { return pool_.used(); }
  std::int64_t peak_used_slots() const { return pool_.peak_used(); }
  std::int64_t capacity() const { return pool_.capacity(); }

 private:
  struct Sequence;
  Sequence& at(int sequence) const;
  std::int32_t allocate_slot();
  void allocate_block(Sequence& sequence, int layer, std::int64_t block);

  KvShape shape_;
  BlockPool pool_;
  bool poison_ = false;
  std::vector<std::unique_ptr<Sequence>> sequences_;  // null: the handle is free
};

}  // namespace tessera
