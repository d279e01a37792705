#include <algorithm>
#include <limits>

#include "kvcache/block_tables.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

std::size_t checked_slots(std::int64_t slots, std::size_t slot_bytes) {
  TESSERA_CHECK(slots >= 0 && slot_bytes > 0);
  if (slots > std::numeric_limits<std::int32_t>::max() ||
      static_cast<std::size_t>(slots) > std::numeric_limits<std::size_t>::max() / 2 / slot_bytes) {
    throw ResourceError(
        "memory: a KV cache of {} slots of {} bytes is more than can be addressed; use more ranks, "
        "a shorter --length or a smaller --batch",
        slots, slot_bytes);
  }
  return static_cast<std::size_t>(slots);
}

}  // namespace

SlotPool::SlotPool(std::int64_t slots, std::size_t slot_bytes)
    : slot_bytes_(slot_bytes), free_(checked_slots(slots, slot_bytes)) {
  for (std::size_t i = 0; i < free_.size(); ++i) free_[i] = static_cast<std::int32_t>(free_.size() - 1 - i);
  capacity_ = slots;
}

void SlotPool::require(std::int64_t count) const {
  if (count <= static_cast<std::int64_t>(free_.size())) return;
  throw ResourceError(
      "memory: {} of {} slots of the KV cache are in use ({} bytes in all), and {} more are needed; use a "
      "smaller --batch, a shorter --length or more ranks",
      used(), capacity_, static_cast<std::size_t>(capacity_) * slot_bytes_, count);
}

std::int32_t SlotPool::allocate() {
  require(1);
  const std::int32_t slot = free_.back();
  free_.pop_back();
  peak_used_ = std::max(peak_used_, used());
  return slot;
}

void SlotPool::free(std::int32_t slot) {
  TESSERA_CHECK(slot >= 0 && slot < capacity_ && used() > 0);
  free_.push_back(slot);
}

}  // namespace tessera
