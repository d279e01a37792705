#include "kvcache/kv_cache.hpp"

#include <cstring>

namespace tessera {

KvCache::KvCache(const KvShape& shape, std::int64_t slots, MemoryMeter& meter)
    : tables_(shape, slots),
      slots_(static_cast<std::size_t>(slots) * shape.slot_bytes(), MemoryKind::kKv, meter) {
  if (shape.page_bounds) {
    bounds_ = Buffer(static_cast<std::size_t>(slots) * shape.bounds_bytes(), MemoryKind::kKv, meter);
  }
}

KvView KvCache::with_bytes(KvView view) const {
  view.slots = slots_.data();
  return view;
}

KvView KvCache::view(int sequence, int layer, std::int64_t length) const {
  KvView view = with_bytes(tables_.view(sequence, layer, length));
  if (view.rows_of_head == nullptr) view.bounds = bounds_.data();
  return view;
}

KvView KvCache::guest_view(int sequence, int layer, std::int64_t length) const {
  return with_bytes(tables_.guest_view(sequence, layer, length));
}

KvView KvCache::joint_view(int sequence, int layer, std::int64_t length) const {
  return with_bytes(tables_.joint_view(sequence, layer, length));
}

std::byte* KvCache::place_guest(int sequence, int layer, int kv_head, std::int64_t block) {
  return slot_at(tables_.place_guest(sequence, layer, kv_head, block));
}

void KvCache::poison_new_slots(bool on) {
  poison_ = on;
  if (!on) return tables_.set_allocation_listener({});
  tables_.set_allocation_listener([this](std::int32_t index) {  // all bits set is a NaN in f32, bf16 and f16
    std::memset(slot_at(index), 0xff, shape().slot_bytes());
    if (shape().page_bounds) std::memset(bounds_at(index), 0xff, shape().bounds_bytes());
  });
}

}  // namespace tessera
