#include "parallel/partition.hpp"

#include <algorithm>

#include "runtime/core/error.hpp"

namespace tessera {

SequencePartition::SequencePartition(std::int64_t length, int ranks) : length_(length), ranks_(ranks) {
  TESSERA_CHECK(length >= 0 && ranks >= 1);
  const std::int64_t units = ceil_div(length, kPartitionTokens);
  const std::int64_t chunks = 2 * std::int64_t{ranks};
  chunk_begin_.reserve(static_cast<std::size_t>(chunks) + 1);
  for (std::int64_t c = 0; c <= chunks; ++c) {
    chunk_begin_.push_back(std::min(length, units * c / chunks * kPartitionTokens));
  }
}

std::array<TokenRange, 2> SequencePartition::ranges_of(int rank) const {
  TESSERA_CHECK(rank >= 0 && rank < ranks_);
  const auto chunk = [&](int c) {
    return TokenRange{chunk_begin_[static_cast<std::size_t>(c)],
                      chunk_begin_[static_cast<std::size_t>(c) + 1]};
  };
  return {chunk(rank), chunk(2 * ranks_ - 1 - rank)};
}

std::int64_t SequencePartition::tokens_of(int rank) const {
  const auto ranges = ranges_of(rank);
  return ranges[0].size() + ranges[1].size();
}

std::vector<std::int32_t> SequencePartition::positions_of(int rank) const {
  std::vector<std::int32_t> positions;
  positions.reserve(static_cast<std::size_t>(tokens_of(rank)));
  for (const TokenRange& range : ranges_of(rank)) {
    for (std::int64_t p = range.begin; p < range.end; ++p) positions.push_back(static_cast<std::int32_t>(p));
  }
  return positions;
}

int SequencePartition::owner_of_block(std::int64_t block) const {
  TESSERA_CHECK(block >= 0);
  const std::int64_t position = block * kBlockTokens;
  if (position >= length_) return static_cast<int>(block % ranks_);
  // The last chunk that begins at or before the position is never an empty one.
  const auto after = std::upper_bound(chunk_begin_.begin(), chunk_begin_.end(), position);
  const int chunk = static_cast<int>(after - chunk_begin_.begin()) - 1;
  return std::min(chunk, 2 * ranks_ - 1 - chunk);
}

}  // namespace tessera
