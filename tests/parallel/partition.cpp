// The sequence partition: properties over many lengths and numbers of ranks.
#include "parallel/partition.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "runtime/core/random.hpp"

using namespace tessera;

namespace {

std::vector<std::int64_t> lengths() {
  std::vector<std::int64_t> all{0,   1,   63,   64,   65,   127,  128,   129,   255,
                                256, 257, 1000, 1024, 4096, 5000, 16384, 131072};
  CounterRng rng(1, stream_of("partition"));
  for (int i = 0; i < 40; ++i) all.push_back(static_cast<std::int64_t>(rng.below(20000)));
  return all;
}

}  // namespace

TEST_CASE("every position belongs to exactly one rank, and no block straddles two") {
  for (const std::int64_t length : lengths()) {
    for (int ranks = 1; ranks <= 8; ++ranks) {
      CAPTURE(length);
      CAPTURE(ranks);
      const SequencePartition partition(length, ranks);
      std::vector<int> owner(static_cast<std::size_t>(length), -1);
      std::int64_t total = 0;
      bool once = true, aligned = true, ascending = true;
      for (int rank = 0; rank < ranks; ++rank) {
        const auto positions = partition.positions_of(rank);
        REQUIRE(static_cast<std::int64_t>(positions.size()) == partition.tokens_of(rank));
        ascending = ascending && std::is_sorted(positions.begin(), positions.end());
        total += partition.tokens_of(rank);
        for (const std::int32_t position : positions) {
          once = once && owner.at(static_cast<std::size_t>(position)) == -1;
          owner[static_cast<std::size_t>(position)] = rank;
        }
        for (const TokenRange& range : partition.ranges_of(rank)) {
          aligned = aligned && range.begin <= range.end &&
                    (range.begin % 128 == 0 || range.begin == length) &&
                    (range.end % 128 == 0 || range.end == length);
        }
      }
      CHECK(once);
      CHECK(aligned);
      CHECK(ascending);
      CHECK(total == length);

      bool owners_agree = true;
      for (std::int64_t position = 0; position < length; ++position) {
        owners_agree = owners_agree &&
                       partition.owner_of_block(position / 64) == owner[static_cast<std::size_t>(position)];
      }
      CHECK(owners_agree);
      const std::int64_t first_free = (length + 63) / 64;
      for (std::int64_t block = first_free; block < first_free + 20; ++block) {
        CHECK(partition.owner_of_block(block) == block % ranks);
      }
    }
  }
}

TEST_CASE("causal work and tokens are balanced") {
  for (const std::int64_t length : lengths()) {
    for (int ranks = 1; ranks <= 8; ++ranks) {
      CAPTURE(length);
      CAPTURE(ranks);
      const SequencePartition partition(length, ranks);
      std::int64_t most_tokens = 0, least_tokens = length;
      double most_work = 0, total_work = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        double work = 0;
        for (const std::int32_t position : partition.positions_of(rank)) work += position + 1.0;
        total_work += work;
        most_work = std::max(most_work, work);
        most_tokens = std::max(most_tokens, partition.tokens_of(rank));
        least_tokens = std::min(least_tokens, partition.tokens_of(rank));
      }
      // Each of a rank's two chunks is within one unit of 128 of its fair size.
      CHECK(most_tokens - least_tokens <= 3 * 128);
      // So its causal work exceeds the mean by at most two units of the longest rows.
      CHECK(most_work <= total_work / ranks + 2.0 * 128 * static_cast<double>(length));
    }
  }
  // Where the units divide evenly, the balance is that of the two chunks: within one token a row.
  const SequencePartition even(131072, 4);
  for (int rank = 0; rank < 4; ++rank) {
    double work = 0;
    for (const std::int32_t position : even.positions_of(rank)) work += position + 1.0;
    CHECK(work == 131072.0 * 131073.0 / 2 / 4);
  }
}

TEST_CASE("chunks r and 2R-1-r belong to rank r") {
  const SequencePartition partition(1024, 2);  // 8 units: chunks of two
  CHECK(partition.ranges_of(0)[0].begin == 0);
  CHECK(partition.ranges_of(0)[0].end == 256);
  CHECK(partition.ranges_of(0)[1].begin == 768);
  CHECK(partition.ranges_of(0)[1].end == 1024);
  CHECK(partition.ranges_of(1)[0].begin == 256);
  CHECK(partition.ranges_of(1)[1].end == 768);
  CHECK(SequencePartition(70, 4).owner_of_block(1) == 0);  // one unit: the last chunk, hence rank 0
}
