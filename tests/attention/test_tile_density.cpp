// How many pairs the GPU's sparse prefill executes for each that a query sees: pages of a row fill tiles
// whatever blocks they come from, then its columns fill tiles of their own.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "attention/selection_builder.hpp"

using namespace tessera;

namespace {

std::vector<std::int32_t> random_lines(std::int64_t length, std::size_t budget, std::int32_t forced,
                                       std::mt19937_64& rng) {
  std::set<std::int32_t> lines;
  for (std::int32_t i = 0; i < forced; ++i) lines.insert(i);
  while (lines.size() < budget) {
    lines.insert(static_cast<std::int32_t>(rng() % static_cast<std::uint64_t>(length)));
  }
  return {lines.begin(), lines.end()};
}

struct Density {
  double kept = 0;    // of causal pairs
  double pages = 0;   // executed by visible: whole pages and columns for whole query blocks …
  double tiles = 0;   // … in tiles of so many keys …
  double blocks = 0;  // … and in whole blocks, if pages were not packed
};

Density density_of(const PrefillSelection& s, std::int64_t tile_keys) {
  const PairCounts counts = count_pairs(s);
  double visible = 0, causal = 0, executed = 0, tiles = 0, blocks = 0;
  for (int head = 0; head < s.heads; ++head) {
    const auto h = static_cast<std::size_t>(head);
    visible += static_cast<double>(counts.visible[h]);
    causal += static_cast<double>(counts.causal[h]);
    executed += static_cast<double>(counts.executed[h]);
    for (std::int64_t row = 0; row < s.query_blocks(); ++row) {
      std::vector<unsigned> seen(static_cast<std::size_t>(s.query_blocks()), 0);
      std::int64_t pages = 0, columns = 0;
      for (const BlockEntry& entry : s.row(head, row)) {
        seen[static_cast<std::size_t>(entry.block())] = entry.pages();
        pages += __builtin_popcount(entry.pages());
      }
      for (const std::int32_t column : s.columns_of(head)) {
        if (column >= (row + 1) * kQueryBlockRows) break;
        columns += (seen[static_cast<std::size_t>(column / kBlockTokens)] >> column % 64 / 16 & 1U) == 0;
      }
      const auto keys = [&](std::int64_t count, std::int64_t of) { return ceil_div(count * of, tile_keys); };
      tiles += static_cast<double>((keys(pages, kPageTokens) + keys(columns, 1)) * tile_keys * 64);
      blocks += static_cast<double>(static_cast<std::int64_t>(s.row(head, row).size()) * 64 * 64 +
                                    keys(columns, 1) * tile_keys * 64);
    }
  }
  return {visible / causal, executed / visible, tiles / visible, blocks / visible};
}

}  // namespace

TEST_CASE("tiles of packed pages and columns execute little more than what is seen") {
  std::mt19937_64 rng(5);
  for (std::size_t n : {256, 512, 1024}) {
    const std::int64_t length = 65536;
    const PrefillSelection s = select_diagonals(length, false, {random_lines(length, n, 4, rng)},
                                                {random_lines(length, n, 64, rng)});
    const Density d = density_of(s, 64);
    MESSAGE("n=", n, " kept ", d.kept, " executed by visible: pages ", d.pages, " tiles ", d.tiles,
            " blocks ", d.blocks);
    CHECK(d.pages <= d.tiles);
    CHECK(d.tiles <= 1.04);
    CHECK(d.tiles < d.blocks);
  }
}
