#include "runtime/model/exchange_needs.hpp"

#include <algorithm>
#include <array>

namespace tessera {
namespace {

// Blocks begin … end − 1.
struct Blocks {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return std::max<std::int64_t>(0, end - begin); }
};

Blocks overlap(const Blocks& a, const Blocks& b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

Blocks blocks_of(const TokenRange& range) {
  if (range.size() <= 0) return {};
  return {range.begin / kBlockTokens, ceil_div(range.end, kBlockTokens)};
}

std::array<Blocks, 2> held_by(const SequencePartition& partition, int rank) {
  const auto ranges = partition.ranges_of(rank);
  return {blocks_of(ranges[0]), blocks_of(ranges[1])};
}

// What the rows of a rank see, as intervals that do not meet: none past the last row of a range, none that
// the window of its first row left behind.
std::array<Blocks, 2> seen_by(const SequencePartition& partition, int rank, std::int64_t window) {
  std::array<Blocks, 2> seen;
  const auto ranges = partition.ranges_of(rank);
  for (std::size_t i = 0; i < 2; ++i) {
    if (ranges[i].size() <= 0) continue;
    const std::int64_t oldest = window == 0 ? 0 : std::max<std::int64_t>(0, ranges[i].begin - window + 1);
    seen[i] = {oldest / kBlockTokens, ceil_div(ranges[i].end, kBlockTokens)};
  }
  if (seen[0].size() > 0 && seen[1].size() > 0) seen[1].begin = std::max(seen[1].begin, seen[0].end);
  return seen;
}

}  // namespace

std::int64_t owned_blocks(const SequencePartition& partition, int rank, std::int64_t first,
                          std::int64_t last) {
  const Blocks wanted{first, last};
  std::int64_t blocks = 0;
  for (const Blocks& held : held_by(partition, rank)) blocks += overlap(held, wanted).size();
  // Blocks after the prompt go round.
  const std::int64_t ranks = partition.ranks();
  const Blocks later{std::max(first, ceil_div(partition.length(), kBlockTokens)), last};
  const auto before = [&](std::int64_t end) { return (end + ranks - 1 - rank) / ranks; };  // of 0 … end − 1
  if (later.size() > 0) blocks += before(later.end) - before(later.begin);
  return blocks;
}

LayerExchange layer_exchange(const SequencePartition& partition, std::int64_t window, ExchangeMode mode) {
  const auto ranks = static_cast<std::size_t>(partition.ranks());
  const std::vector<std::int64_t> none(ranks, 0);
  LayerExchange exchange{none, none, none, none, none, false};
  if (ranks == 1) return exchange;
  constexpr std::int64_t kPagesABlock = kBlockTokens / kPageTokens;
  const std::int64_t all_blocks = ceil_div(partition.length(), kBlockTokens);
  const std::int64_t all_pages = ceil_div(partition.length(), kPageTokens);
  // The last block may have fewer pages.
  const auto pages_of = [&](const Blocks& blocks) {
    if (blocks.size() == 0) return std::int64_t{0};
    return std::min(all_pages, blocks.end * kPagesABlock) - blocks.begin * kPagesABlock;
  };
  std::vector<std::int64_t> needed_blocks = none, full_blocks = none;
  std::int64_t needed = 0, full = 0;
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    const auto seen = seen_by(partition, static_cast<int>(rank), window);
    for (std::size_t owner = 0; owner < ranks; ++owner) {
      if (owner == rank) continue;
      for (const Blocks& held : held_by(partition, static_cast<int>(owner))) {
        for (const Blocks& part : seen) {
          const Blocks fetched = overlap(held, part);
          exchange.needed_pages[rank] += pages_of(fetched);
          exchange.needed_sent[owner] += pages_of(fetched);
          needed_blocks[rank] += fetched.size();
        }
        exchange.full_pages[rank] += pages_of(held);
        exchange.full_sent[owner] += pages_of(held);
      }
    }
    full_blocks[rank] = all_blocks - owned_blocks(partition, static_cast<int>(rank), 0, all_blocks);
    needed += exchange.needed_pages[rank];
    full += exchange.full_pages[rank];
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
