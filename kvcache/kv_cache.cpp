#include "kvcache/kv_cache.hpp"

#include <algorithm>
#include <cstring>

#include "runtime/core/error.hpp"

namespace tessera {
namespace {

const KvShape& checked(const KvShape& shape) {
  TESSERA_CHECK(shape.layers > 0 && shape.kv_heads > 0 && shape.head_dim > 0);
  return shape;
}

}  // namespace

struct KvCache::Sequence {
  struct Guest {
    int kv_head;
    std::int64_t block;
  };

  std::int64_t max_tokens = 0;
  std::int64_t stride = 0;           // columns of a table: ceil(max_tokens / B)
  std::vector<std::int32_t> tables;  // (L, K, stride)
  std::vector<std::int64_t> oldest;  // (L): no local block lies before this one
  int guest_layer = -1;              // the layer that has guests, or −1
  std::vector<Guest> guests;
  std::vector<bool> is_guest;  // (K, stride) of guest_layer

  std::int32_t* table(const KvShape& shape, int layer) {
    return tables.data() + static_cast<std::int64_t>(layer) * shape.kv_heads * stride;
  }
  bool guest_at(int layer, int kv_head, std::int64_t block) const {
    return layer == guest_layer && is_guest[static_cast<std::size_t>(kv_head * stride + block)];
  }
  bool local_at(const KvShape& shape, int layer, std::int64_t block) {  // head 0 stands for all
    return table(shape, layer)[block] != kNoSlot && !guest_at(layer, 0, block);
  }
};

KvCache::KvCache(const KvShape& shape, std::int64_t slots, MemoryMeter& meter)
    : shape_(checked(shape)), pool_(slots, shape.slot_bytes(), meter) {}

KvCache::~KvCache() = default;

KvCache::Sequence& KvCache::at(int sequence) const {
  TESSERA_CHECK(sequence >= 0 && sequence < static_cast<int>(sequences_.size()));
  Sequence* found = sequences_[static_cast<std::size_t>(sequence)].get();
  TESSERA_CHECK(found != nullptr);
  return *found;
}

int KvCache::add_sequence(std::int64_t max_tokens) {
  TESSERA_CHECK(max_tokens >= 0);
  auto sequence = std::make_unique<Sequence>();
  sequence->max_tokens = max_tokens;
  sequence->stride = ceil_div(max_tokens, kBlockTokens);
  sequence->tables.assign(
      static_cast<std::size_t>(shape_.layers) * shape_.kv_heads * static_cast<std::size_t>(sequence->stride),
      kNoSlot);
  sequence->oldest.assign(static_cast<std::size_t>(shape_.layers), 0);
  const auto unused = std::find(sequences_.begin(), sequences_.end(), nullptr);
  const int handle = static_cast<int>(unused - sequences_.begin());
  if (unused == sequences_.end()) sequences_.emplace_back();
  sequences_[static_cast<std::size_t>(handle)] = std::move(sequence);
  return handle;
}

void KvCache::remove_sequence(int sequence) {
  for (const std::int32_t slot : at(sequence).tables) {
    if (slot != kNoSlot) pool_.free(slot);
  }
  sequences_[static_cast<std::size_t>(sequence)].reset();
}

std::int32_t KvCache::allocate_slot() {
  const std::int32_t slot = pool_.allocate();
  // All bits set is a NaN in f32, bf16 and f16.
  if (poison_) std::memset(pool_.slot(slot), 0xff, shape_.slot_bytes());
  return slot;
}

// All KV heads or none.
void KvCache::allocate_block(Sequence& sequence, int layer, std::int64_t block) {
  std::int32_t* table = sequence.table(shape_, layer);
  int head = 0;
  try {
    for (; head < shape_.kv_heads; ++head) {
      TESSERA_CHECK(table[head * sequence.stride + block] == kNoSlot);  // a guest is never written as local
      table[head * sequence.stride + block] = allocate_slot();
    }
  } catch (...) {
    while (--head >= 0) {
      pool_.free(table[head * sequence.stride + block]);
      table[head * sequence.stride + block] = kNoSlot;
    }
    throw;
  }
  std::int64_t& oldest = sequence.oldest[static_cast<std::size_t>(layer)];
  oldest = std::min(oldest, block);
}

void KvCache::append(const KvAppend& append) {
  Sequence& sequence = at(append.sequence);
  TESSERA_CHECK(append.layer >= 0 && append.layer < shape_.layers && append.tokens >= 0);
  const auto head_dim = static_cast<std::size_t>(shape_.head_dim);
  const std::size_t row_bytes = head_dim * size_of(shape_.dtype);
  const std::size_t value_offset = shape_.slot_bytes() / 2;
  std::int32_t* table = sequence.table(shape_, append.layer);

  for (std::int64_t t = 0; t < append.tokens; ++t) {
    const std::int64_t position = append.positions[t];
    TESSERA_CHECK(position >= 0 && position < sequence.max_tokens);
    const std::int64_t block = position / kBlockTokens;
    if (table[block] == kNoSlot) allocate_block(sequence, append.layer, block);
    TESSERA_CHECK(!sequence.guest_at(append.layer, 0, block));

    const std::size_t row = static_cast<std::size_t>(position % kBlockTokens) * row_bytes;
    for (int head = 0; head < shape_.kv_heads; ++head) {
      std::byte* slot = pool_.slot(table[head * sequence.stride + block]);
      const std::int64_t source = t * append.row_stride + std::int64_t{head} * shape_.head_dim;
      convert_from_float(append.k + source, shape_.dtype, slot + row, head_dim);
      convert_from_float(append.v + source, shape_.dtype, slot + value_offset + row, head_dim);
    }
  }
}

KvView KvCache::view(int sequence, int layer, std::int64_t length) const {
  Sequence& held = at(sequence);
  TESSERA_CHECK(layer >= 0 && layer < shape_.layers && length >= 0 && length <= held.max_tokens);
  KvView view;
  view.slots = pool_.base();
  view.slot_bytes = shape_.slot_bytes();
  view.dtype = shape_.dtype;
  view.kv_heads = shape_.kv_heads;
  view.head_dim = shape_.head_dim;
  view.blocks = ceil_div(length, kBlockTokens);
  view.table_stride = held.stride;
  view.table = held.table(shape_, layer);
  view.length = length;
  return view;
}

std::vector<std::int32_t> KvCache::local_blocks(int sequence, int layer) const {
  Sequence& held = at(sequence);
  TESSERA_CHECK(layer >= 0 && layer < shape_.layers);
  std::vector<std::int32_t> blocks;
  for (std::int64_t b = held.oldest[static_cast<std::size_t>(layer)]; b < held.stride; ++b) {
    if (held.local_at(shape_, layer, b)) blocks.push_back(static_cast<std::int32_t>(b));
  }
  return blocks;
}

std::byte* KvCache::place_guest(int sequence, int layer, int kv_head, std::int64_t block) {
  Sequence& held = at(sequence);
  TESSERA_CHECK(layer >= 0 && layer < shape_.layers && kv_head >= 0 && kv_head < shape_.kv_heads);
  TESSERA_CHECK(block >= 0 && block < held.stride);
  TESSERA_CHECK(held.guest_layer == -1 || held.guest_layer == layer);
  std::int32_t& slot = held.table(shape_, layer)[kv_head * held.stride + block];
  if (slot != kNoSlot) {
    TESSERA_CHECK(held.guest_at(layer, kv_head, block));  // a block of our own needs no guest
    return pool_.slot(slot);
  }
  held.is_guest.resize(static_cast<std::size_t>(shape_.kv_heads * held.stride));
  slot = allocate_slot();
  held.guest_layer = layer;
  held.is_guest[static_cast<std::size_t>(kv_head * held.stride + block)] = true;
  held.guests.push_back({kv_head, block});
  return pool_.slot(slot);
}

void KvCache::drop_guests(int sequence, int layer) {
  Sequence& held = at(sequence);
  TESSERA_CHECK(layer >= 0 && layer < shape_.layers);
  if (held.guest_layer != layer) return;
  std::int32_t* table = held.table(shape_, layer);
  for (const Sequence::Guest& guest : held.guests) {
    const std::int64_t index = guest.kv_head * held.stride + guest.block;
    pool_.free(table[index]);
    table[index] = kNoSlot;
    held.is_guest[static_cast<std::size_t>(index)] = false;
  }
  held.guests.clear();
  held.guest_layer = -1;
}

void KvCache::release_before(int sequence, int layer, std::int64_t position) {
  Sequence& held = at(sequence);
  TESSERA_CHECK(layer >= 0 && layer < shape_.layers);
  const std::int64_t end = std::clamp<std::int64_t>(position / kBlockTokens, 0, held.stride);
  std::int64_t& oldest = held.oldest[static_cast<std::size_t>(layer)];
  std::int32_t* table = held.table(shape_, layer);
  for (std::int64_t block = oldest; block < end; ++block) {
    if (!held.local_at(shape_, layer, block)) continue;
    for (int head = 0; head < shape_.kv_heads; ++head) {
      pool_.free(table[head * held.stride + block]);
      table[head * held.stride + block] = kNoSlot;
    }
  }
  oldest = std::max(oldest, end);
}

}  // namespace tessera
