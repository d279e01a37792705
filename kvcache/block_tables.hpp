// Which slot belongs to what, apart from where the bytes of slots lie: a pool of slot numbers, and for each
// sequence a table that maps a logical block (sequence, layer, KV head, index) to a slot, local or a guest.
// KvCache keeps the bytes in host memory; a cache on a device mirrors the tables there.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "kvcache/kv_view.hpp"

namespace tessera {

struct KvShape {
  int layers = 0;    // L
  int kv_heads = 0;  // K of this rank
  int head_dim = 0;  // D
  DType dtype = DType::kF32;
  bool page_bounds = false;  // keep the lowest and highest value of each channel of the keys of each page

  std::size_t slot_bytes() const {
    return 2ull * kBlockTokens * static_cast<std::size_t>(head_dim) * size_of(dtype);
  }
  // Beside each slot: 1/16 of it.
  std::size_t bounds_bytes() const { return page_bounds ? slot_bytes() / kPageTokens : 0; }
};

// Numbers 0 … slots − 1; free ones are reused last-in first-out.
class SlotPool {
 public:
  // slot_bytes: what a slot takes with all that goes with it. ResourceError when so many cannot be addressed.
  SlotPool(std::int64_t slots, std::size_t slot_bytes);
  void require(std::int64_t count) const;  // ResourceError unless that many slots are free
  std::int32_t allocate();                 // ResourceError when none is free
  void free(std::int32_t slot);
  std::int64_t capacity() const { return capacity_; }
  std::int64_t used() const { return capacity_ - static_cast<std::int64_t>(free_.size()); }
  std::int64_t peak_used() const { return peak_used_; }

 private:
  std::size_t slot_bytes_;
  std::int64_t capacity_ = 0;
  std::int64_t peak_used_ = 0;
  std::vector<std::int32_t> free_;
};

// The positions that stay, for each KV head of this rank. Whoever holds a position keeps it: every rank may
// be given the same lists.
struct KeptTokens {
  std::span<const std::int64_t> begin;      // (K + 1) into positions
  std::span<const std::int32_t> positions;  // global, ascending within a head
};

// A row of K and V that eviction moves: row r of slot s has the number 64·s + r.
struct RowMove {
  std::int64_t source = 0;
  std::int64_t target = 0;
};

// Layers first … last − 1.
struct LayerRange {
  int first = 0;
  int last = 0;
};

class BlockTables {
 public:
  // slots: for all sequences and layers, guests included.
  BlockTables(const KvShape& shape, std::int64_t slots);
  ~BlockTables();
  BlockTables(const BlockTables&) = delete;
  BlockTables& operator=(const BlockTables&) = delete;

  // Handles are the lowest that are free.
  int add_sequence(std::int64_t max_tokens);  // a handle; tables for ceil(max_tokens / B) blocks
  void remove_sequence(int sequence);         // frees its blocks and guests

  // Slots for new rows of one layer: those of the blocks that the positions (ascending) fall into, one for
  // each KV head, where they are not held yet; in an evicted layer those behind the rows of each head, which
  // from then on count the new ones. ResourceError when the pool has too few: nothing has changed then.
  void extend(int sequence, int layer, std::span<const std::int32_t> positions);

  // Frees local blocks of (sequence, layer) that lie wholly inside positions first … last − 1. Blocks that
  // the last calls emptied are not visited again.
  void release_between(int sequence, int layer, std::int64_t first, std::int64_t last);

  // Drops all rows of a layer but the kept ones, which are packed: row i of a head moves to row i % 64 of its
  // block i / 64. Returns the moves of each head (K) that bring them there, to be made in order before any
  // slot is given out again: a row that is overwritten was moved or dropped. Rows that stay where they are
  // have none. Once a layer.
  std::vector<std::vector<RowMove>> evict(int sequence, int layer, const KeptTokens& kept);

  // A slot for rows of another rank (the same one when called again for that block), for one layer of one
  // sequence at a time; drop_guests frees all of them. Not in an evicted layer, nor where the block is held.
  std::int32_t place_guest(int sequence, int layer, int kv_head, std::int64_t block);
  void drop_guests(int sequence, int layer);

  // Views without bytes (slots and bounds are null). Valid until the next call that changes the sequence.
  KvView view(int sequence, int layer, std::int64_t length) const;
  KvView guest_view(int sequence, int layer, std::int64_t length) const;
  KvView joint_view(int sequence, int layer, std::int64_t length) const;

  std::vector<std::int32_t> local_blocks(int sequence, int layer) const;

  std::int64_t max_tokens(int sequence) const;
  std::int64_t stride(int sequence) const;                            // columns of a table
  std::span<const std::int32_t> tables(int sequence) const;           // (L, K, stride), local blocks
  const std::int32_t* table(int sequence, int layer) const;           // (K, stride)
  bool is_packed(int sequence, int layer) const;                      // evicted
  std::span<const std::int64_t> rows(int sequence, int layer) const;  // (K) once evicted; empty before

  // The layers whose local tables changed since the last call, between the first and the last of them: what a
  // mirror has to bring up to date.
  LayerRange take_changed(int sequence);

  // Told of every slot that is given out (tests poison it); empty: nobody.
  void set_allocation_listener(std::function<void(std::int32_t slot)> listener) {
    allocated_ = std::move(listener);
  }

  const KvShape& shape() const { return shape_; }
  std::int64_t used_slots() const { return pool_.used(); }
  std::int64_t peak_used_slots() const { return pool_.peak_used(); }
  std::int64_t capacity() const { return pool_.capacity(); }

 private:
  struct Sequence;
  Sequence& at(int sequence) const;
  Sequence& at(int sequence, int layer) const;
  KvView view_of(const Sequence& sequence, const std::int32_t* table, std::int64_t length) const;
  std::int32_t allocate_slot();
  void extend_blocks(Sequence& sequence, int layer, std::span<const std::int32_t> positions);
  void extend_packed(Sequence& sequence, int layer, std::int64_t tokens);
  void release_blocks(Sequence& sequence, int layer, std::int64_t first, std::int64_t last);
  std::int64_t pack_head(Sequence& sequence, int layer, int kv_head, std::span<const std::int32_t> positions,
                         std::vector<RowMove>& moves);

  KvShape shape_;
  SlotPool pool_;
  std::function<void(std::int32_t)> allocated_;
  std::vector<std::unique_ptr<Sequence>> sequences_;  // null: the handle is free
};

}  // namespace tessera
