// Sizes by intervals against the lists of units themselves, and blocks against their owners one by one.
#include "runtime/model/exchange_needs.hpp"

#include <doctest/doctest.h>

#include <set>

#include "attention/needed_units.hpp"

using namespace tessera;

TEST_CASE("exchange needs are the sizes of the lists of units") {
  for (const std::int64_t length : {1, 63, 128, 129, 1000, 4096, 5000}) {
    for (const int ranks : {1, 2, 3, 4, 7}) {
      for (const std::int64_t window : {0, 1, 64, 65, 200, 3000}) {
        CAPTURE(length);
        CAPTURE(ranks);
        CAPTURE(window);
        const SequencePartition partition(length, ranks);
        const LayerExchange exchange = layer_exchange(partition, window, ExchangeMode::kSelected);
        std::vector<std::int64_t> sent(static_cast<std::size_t>(ranks), 0);
        for (int rank = 0; rank < ranks; ++rank) {
          const auto r = static_cast<std::size_t>(rank);
          std::int64_t needed = 0, full = 0;
          std::set<std::int64_t> blocks;
          const UnitLists lists = dense_units(1, partition, rank, window);
          for (std::size_t owner = 0; owner < lists.size(); ++owner) {
            needed += static_cast<std::int64_t>(lists[owner].size());
            sent[owner] += static_cast<std::int64_t>(lists[owner].size());
            for (const UnitId id : lists[owner]) blocks.insert(KvUnit::of(id).block());
          }
          for (const auto& list : all_units(1, partition, rank))
            full += static_cast<std::int64_t>(list.size());
          CHECK(exchange.needed_pages[r] == needed);
          CHECK(exchange.full_pages[r] == full);
          CHECK(exchange.guest_blocks[r] == static_cast<std::int64_t>(blocks.size()));
        }
        CHECK(exchange.needed_sent == sent);
      }
    }
  }
}

TEST_CASE("blocks of a rank, those after the prompt included") {
  for (const std::int64_t length : {1, 128, 1000, 5000}) {
    for (const int ranks : {1, 2, 3, 5}) {
      const SequencePartition partition(length, ranks);
      for (const auto& [first, last] : {std::pair{0, 90}, {3, 8}, {79, 81}, {5, 5}}) {
        for (int rank = 0; rank < ranks; ++rank) {
          std::int64_t count = 0;
          for (std::int64_t block = first; block < last; ++block)
            count += partition.owner_of_block(block) == rank;
          CAPTURE(length);
          CAPTURE(ranks);
          CAPTURE(rank);
          CHECK(owned_blocks(partition, rank, first, last) == count);
        }
      }
    }
  }
}
