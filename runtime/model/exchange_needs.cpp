#include "runtime/model/exchange_needs.hpp"

#include "attention/needed_units.hpp"

namespace tessera {
namespace {

struct Received {
  std::int64_t pages = 0;
  std::int64_t blocks = 0;
};

Received count(const UnitLists& lists) {
  Received received;
  for (const auto& list : lists) {
    std::int64_t last_block = -1;  // units ascend
    for (const UnitId id : list) {
      const std::int64_t block = KvUnit::of(id).block();
      ++received.pages;
      received.blocks += block != last_block;
      last_block = block;
    }
  }
  return received;
}

}  // namespace

LayerExchange layer_exchange(const SequencePartition& partition, std::int64_t window, ExchangeMode mode) {
  LayerExchange exchange;
  if (partition.ranks() == 1) return {{0}, {0}, {0}, false};
  std::vector<std::int64_t> needed_blocks, full_blocks;
  std::int64_t needed = 0, full = 0;
  for (int rank = 0; rank < partition.ranks(); ++rank) {
    const Received seen = count(dense_units(1, partition, rank, window));
    const Received all = count(all_units(1, partition, rank));
    exchange.needed_pages.push_back(seen.pages);
    exchange.full_pages.push_back(all.pages);
    needed_blocks.push_back(seen.blocks);
    full_blocks.push_back(all.blocks);
    needed += seen.pages;
    full += all.pages;
  }
  // As the transformer decides for a layer.
  exchange.gathers = mode == ExchangeMode::kGather ||
                     (mode == ExchangeMode::kAuto &&
                      static_cast<double>(needed) >= kGatherShare * static_cast<double>(full));
  exchange.guest_blocks = exchange.gathers ? full_blocks : needed_blocks;
  return exchange;
}

const LayerExchange& ExchangeTable::of(std::int64_t window) {
  const auto found = by_window_.find(window);
  if (found != by_window_.end()) return found->second;
  return by_window_.emplace(window, layer_exchange(partition_, window, mode_)).first->second;
}

}  // namespace tessera
