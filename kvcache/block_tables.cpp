#include "kvcache/block_tables.hpp"

#include <algorithm>
#include <utility>

#include "kvcache/kv_sequence.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

const KvShape& checked(const KvShape& shape) {
  TESSERA_CHECK(shape.layers > 0 && shape.kv_heads > 0 && shape.head_dim > 0);
  return shape;
}

void check_ascending(std::span<const std::int32_t> positions, std::int64_t max_tokens) {
  std::int64_t previous = -1;
  for (const std::int32_t position : positions) {
    TESSERA_CHECK(position > previous && position < max_tokens);
    previous = position;
  }
}

}  // namespace

BlockTables::BlockTables(const KvShape& shape, std::int64_t slots)
    : shape_(checked(shape)), pool_(slots, shape.slot_bytes() + shape.bounds_bytes()) {}

BlockTables::~BlockTables() = default;

BlockTables::Sequence& BlockTables::at(int sequence) const {
  TESSERA_CHECK(sequence >= 0 && sequence < static_cast<int>(sequences_.size()));
  Sequence* found = sequences_[static_cast<std::size_t>(sequence)].get();
  TESSERA_CHECK(found != nullptr);
  return *found;
}

BlockTables::Sequence& BlockTables::at(int sequence, int layer) const {
  TESSERA_CHECK(layer >= 0 && layer < shape_.layers);
  return at(sequence);
}

int BlockTables::add_sequence(std::int64_t max_tokens) {
  TESSERA_CHECK(max_tokens >= 0);
  auto sequence = std::make_unique<Sequence>();
  sequence->max_tokens = max_tokens;
  sequence->stride = ceil_div(max_tokens, kBlockTokens);
  const std::size_t table_size =
      static_cast<std::size_t>(shape_.kv_heads) * static_cast<std::size_t>(sequence->stride);
  sequence->tables.assign(static_cast<std::size_t>(shape_.layers) * table_size, kNoSlot);
  sequence->guest_table.assign(table_size, kNoSlot);
  sequence->layers.resize(static_cast<std::size_t>(shape_.layers));
  const auto unused = std::find(sequences_.begin(), sequences_.end(), nullptr);
  const int handle = static_cast<int>(unused - sequences_.begin());
  if (unused == sequences_.end()) sequences_.emplace_back();
  sequences_[static_cast<std::size_t>(handle)] = std::move(sequence);
  return handle;
}

void BlockTables::remove_sequence(int sequence) {
  Sequence& held = at(sequence);
  for (const auto* slots : {&held.tables, &held.guest_table}) {
    for (const std::int32_t slot : *slots) {
      if (slot != kNoSlot) pool_.free(slot);
    }
  }
  sequences_[static_cast<std::size_t>(sequence)].reset();
}

std::int32_t BlockTables::allocate_slot() {
  const std::int32_t slot = pool_.allocate();
  if (allocated_) allocated_(slot);
  return slot;
}

void BlockTables::extend(int sequence, int layer, std::span<const std::int32_t> positions) {
  Sequence& held = at(sequence, layer);
  check_ascending(positions, held.max_tokens);
  if (held.layer_at(layer).packed()) {
    extend_packed(held, layer, static_cast<std::int64_t>(positions.size()));
  } else {
    extend_blocks(held, layer, positions);
  }
}

// The blocks of these positions, all or none.
void BlockTables::extend_blocks(Sequence& sequence, int layer, std::span<const std::int32_t> positions) {
  std::int32_t* table = sequence.table(layer);  // head 0 stands for all
  std::vector<std::int64_t> missing;
  std::int64_t previous = -1;
  for (const std::int32_t position : positions) {
    const std::int64_t block = position / kBlockTokens;
    if (block != previous && table[block] == kNoSlot) missing.push_back(block);
    previous = block;
  }
  if (missing.empty()) return;
  if (sequence.guest_layer == layer) {
    for (const Sequence::Guest& guest : sequence.guests) {  // rows of a guest are another rank's
      TESSERA_CHECK(!std::binary_search(missing.begin(), missing.end(), guest.block));
    }
  }
  pool_.require(static_cast<std::int64_t>(missing.size()) * shape_.kv_heads);
  sequence.note_change(layer);
  for (const std::int64_t block : missing) {
    for (int head = 0; head < shape_.kv_heads; ++head) sequence.table(layer, head)[block] = allocate_slot();
    sequence.layer_at(layer).close_gap(block);
  }
}

// Slots behind the packed rows of each head, all or none.
void BlockTables::extend_packed(Sequence& sequence, int layer, std::int64_t tokens) {
  std::int64_t needed = 0;
  for (const std::int64_t rows : sequence.layer_at(layer).rows) {
    TESSERA_CHECK(rows + tokens <= sequence.max_tokens);
    needed += ceil_div(rows + tokens, kBlockTokens) - ceil_div(rows, kBlockTokens);
  }
  pool_.require(needed);
  if (needed > 0) sequence.note_change(layer);
  for (int head = 0; head < shape_.kv_heads; ++head) {
    std::int64_t& rows = sequence.rows(layer, head);
    const std::int64_t end = ceil_div(rows + tokens, kBlockTokens);
    for (std::int64_t block = ceil_div(rows, kBlockTokens); block < end; ++block) {
      sequence.table(layer, head)[block] = allocate_slot();
    }
    rows += tokens;
  }
}

KvView BlockTables::view_of(const Sequence& sequence, const std::int32_t* table, std::int64_t length) const {
  TESSERA_CHECK(length >= 0 && length <= sequence.max_tokens);
  KvView view;
  view.slot_bytes = shape_.slot_bytes();
  view.dtype = shape_.dtype;
  view.kv_heads = shape_.kv_heads;
  view.head_dim = shape_.head_dim;
  view.blocks = ceil_div(length, kBlockTokens);
  view.table_stride = sequence.stride;
  view.table = table;
  view.length = length;
  return view;
}

KvView BlockTables::view(int sequence, int layer, std::int64_t length) const {
  Sequence& held = at(sequence, layer);
  KvView view = view_of(held, held.table(layer), length);
  const Sequence::Layer& state = held.layer_at(layer);
  if (state.packed()) {
    view.rows_of_head = state.rows.data();
    view.blocks = ceil_div(*std::max_element(state.rows.begin(), state.rows.end()), kBlockTokens);
  }
  return view;
}

KvView BlockTables::guest_view(int sequence, int layer, std::int64_t length) const {
  const Sequence& held = at(sequence, layer);
  TESSERA_CHECK(held.guest_layer == -1 || held.guest_layer == layer);
  return view_of(held, held.guest_table.data(), length);
}

KvView BlockTables::joint_view(int sequence, int layer, std::int64_t length) const {
  Sequence& held = at(sequence, layer);
  TESSERA_CHECK(!held.layer_at(layer).packed());
  const std::int32_t* table = held.table(layer);
  held.joint_table.assign(table, table + held.guest_table.size());
  if (held.guest_layer == layer) {
    for (const Sequence::Guest& guest : held.guests) {
      const auto index = static_cast<std::size_t>(guest.kv_head * held.stride + guest.block);
      held.joint_table[index] = held.guest_table[index];
    }
  }
  return view_of(held, held.joint_table.data(), length);
}

std::vector<std::int32_t> BlockTables::local_blocks(int sequence, int layer) const {
  Sequence& held = at(sequence, layer);
  const Sequence::Layer& state = held.layer_at(layer);
  TESSERA_CHECK(!state.packed());
  const std::int32_t* table = held.table(layer);
  std::vector<std::int32_t> blocks;
  for (std::int64_t block = 0; block < held.stride; ++block) {
    if (block == state.gap_begin) block = std::max(block, state.gap_end);
    if (block < held.stride && table[block] != kNoSlot) blocks.push_back(static_cast<std::int32_t>(block));
  }
  return blocks;
}

std::int32_t BlockTables::place_guest(int sequence, int layer, int kv_head, std::int64_t block) {
  Sequence& held = at(sequence, layer);
  TESSERA_CHECK(kv_head >= 0 && kv_head < shape_.kv_heads && block >= 0 && block < held.stride);
  TESSERA_CHECK(held.guest_layer == -1 || held.guest_layer == layer);
  TESSERA_CHECK(!held.layer_at(layer).packed());
  TESSERA_CHECK(held.table(layer, kv_head)[block] == kNoSlot);  // a block of our own needs no guest
  std::int32_t& slot = held.guest_table[static_cast<std::size_t>(kv_head * held.stride + block)];
  if (slot == kNoSlot) {
    slot = allocate_slot();
    held.guest_layer = layer;
    held.guests.push_back({kv_head, block});
  }
  return slot;
}

void BlockTables::drop_guests(int sequence, int layer) {
  Sequence& held = at(sequence, layer);
  if (held.guest_layer != layer) return;
  for (const Sequence::Guest& guest : held.guests) {
    std::int32_t& slot =
        held.guest_table[static_cast<std::size_t>(guest.kv_head * held.stride + guest.block)];
    pool_.free(slot);
    slot = kNoSlot;
  }
  held.guests.clear();
  held.guest_layer = -1;
}

void BlockTables::release_blocks(Sequence& sequence, int layer, std::int64_t first, std::int64_t last) {
  for (std::int64_t block = first; block < last; ++block) {
    if (sequence.table(layer)[block] == kNoSlot) continue;
    sequence.note_change(layer);
    for (int head = 0; head < shape_.kv_heads; ++head) {
      std::int32_t& slot = sequence.table(layer, head)[block];
      pool_.free(slot);
      slot = kNoSlot;
    }
  }
}

void BlockTables::release_between(int sequence, int layer, std::int64_t first, std::int64_t last) {
  Sequence& held = at(sequence, layer);
  Sequence::Layer& state = held.layer_at(layer);
  TESSERA_CHECK(!state.packed());
  const std::int64_t begin = ceil_div(std::max<std::int64_t>(first, 0), kBlockTokens);
  const std::int64_t end = std::clamp<std::int64_t>(last / kBlockTokens, 0, held.stride);
  if (begin >= end) return;
  if (begin > state.gap_end || end < state.gap_begin) state.gap_begin = state.gap_end = begin;
  release_blocks(held, layer, begin, std::min(end, state.gap_begin));
  release_blocks(held, layer, std::max(begin, state.gap_end), end);
  state.gap_begin = std::min(begin, state.gap_begin);
  state.gap_end = std::max(end, state.gap_end);
}

// Moves of the kept rows of one head to the front of the slots that it holds; returns how many rows those
// are. The i-th kept row is at least the i-th row held, so it never moves back: going upwards, only rows that
// were moved or dropped are overwritten.
std::int64_t BlockTables::pack_head(Sequence& sequence, int layer, int kv_head,
                                    std::span<const std::int32_t> positions, std::vector<RowMove>& moves) {
  std::int32_t* table = sequence.table(layer, kv_head);
  std::vector<std::int32_t> slots;
  for (std::int64_t block = 0; block < sequence.stride; ++block) {
    if (table[block] != kNoSlot) slots.push_back(table[block]);
  }
  std::int64_t rows = 0;
  for (const std::int32_t position : positions) {
    const std::int32_t slot = table[position / kBlockTokens];
    if (slot == kNoSlot) continue;  // another rank's
    const RowMove move{std::int64_t{slot} * kBlockTokens + position % kBlockTokens,
                       std::int64_t{slots[static_cast<std::size_t>(rows / kBlockTokens)]} * kBlockTokens +
                           rows % kBlockTokens};
    if (move.source != move.target) moves.push_back(move);
    ++rows;
  }
  // The slots in order, so that those behind the kept rows are the last ones.
  std::fill(std::copy(slots.begin(), slots.end(), table), table + sequence.stride, kNoSlot);
  return rows;
}

std::vector<std::vector<RowMove>> BlockTables::evict(int sequence, int layer, const KeptTokens& kept) {
  Sequence& held = at(sequence, layer);
  Sequence::Layer& state = held.layer_at(layer);
  const auto heads = static_cast<std::size_t>(shape_.kv_heads);
  TESSERA_CHECK(!state.packed() && held.guest_layer != layer);
  TESSERA_CHECK(kept.begin.size() == heads + 1 && kept.begin.front() == 0 &&
                kept.begin.back() == static_cast<std::int64_t>(kept.positions.size()) &&
                std::is_sorted(kept.begin.begin(), kept.begin.end()));
  const auto list_of = [&kept](std::size_t head) {
    return kept.positions.subspan(static_cast<std::size_t>(kept.begin[head]),
                                  static_cast<std::size_t>(kept.begin[head + 1] - kept.begin[head]));
  };
  for (std::size_t head = 0; head < heads; ++head) check_ascending(list_of(head), held.max_tokens);

  held.note_change(layer);
  std::vector<std::vector<RowMove>> moves(heads);
  std::vector<std::int64_t> rows(heads);
#pragma omp parallel for schedule(static)
  for (std::size_t head = 0; head < heads; ++head) {
    rows[head] = pack_head(held, layer, static_cast<int>(head), list_of(head), moves[head]);
  }
  state.rows = std::move(rows);
  for (int head = 0; head < shape_.kv_heads; ++head) {
    std::int32_t* table = held.table(layer, head);
    for (std::int64_t block = ceil_div(held.rows(layer, head), kBlockTokens); block < held.stride; ++block) {
      if (table[block] == kNoSlot) break;
      pool_.free(table[block]);
      table[block] = kNoSlot;
    }
  }
  return moves;
}

std::int64_t BlockTables::max_tokens(int sequence) const {
  return at(sequence).max_tokens;
}

std::int64_t BlockTables::stride(int sequence) const {
  return at(sequence).stride;
}

std::span<const std::int32_t> BlockTables::tables(int sequence) const {
  return at(sequence).tables;
}

const std::int32_t* BlockTables::table(int sequence, int layer) const {
  return at(sequence, layer).table(layer);
}

bool BlockTables::is_packed(int sequence, int layer) const {
  return at(sequence, layer).layer_at(layer).packed();
}

std::span<const std::int64_t> BlockTables::rows(int sequence, int layer) const {
  return at(sequence, layer).layer_at(layer).rows;
}

LayerRange BlockTables::take_changed(int sequence) {
  return std::exchange(at(sequence).changed, {});
}

}  // namespace tessera
