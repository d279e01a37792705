// Pairs of random lists counted on the GPU: against looking at every pair, and against the CPU at lengths
// where that takes too long.
#include <doctest/doctest.h>

#include <algorithm>
#include <set>

#include "attention/pair_counts_cuda.hpp"
#include "tests/cuda_support.hpp"

using namespace tessera;
using cuda_test::Gpu;

namespace {

struct Case {
  std::int64_t length = 1;
  int lists = 1;
  double pages = 0.3;    // share of those that a row may see
  double columns = 0.1;  // share of the positions
  bool with_columns = true;
};

PrefillSelection draw(const Case& c, std::mt19937_64& rng) {
  const auto chance = [&](double share) { return static_cast<double>(rng() >> 11) * 0x1p-53 < share; };
  PrefillSelection s;
  s.length = c.length;
  s.heads = c.lists;
  s.row_begin = {0};
  s.column_begin = {0};
  for (int list = 0; list < c.lists; ++list) {
    for (std::int64_t row = 0; row < s.query_blocks(); ++row) {
      const std::int64_t last = std::min(c.length, (row + 1) * kQueryBlockRows) - 1;
      for (std::int64_t block = 0; block <= row; ++block) {
        unsigned mask = 0;
        for (unsigned page = 0; page < 4; ++page) {
          const bool exists = block * kBlockTokens + page * kPageTokens <= last;
          if (exists && chance(c.pages)) mask |= 1U << page;
        }
        if (mask != 0) s.entries.push_back(BlockEntry::make(block, mask));
      }
      s.row_begin.push_back(static_cast<std::int64_t>(s.entries.size()));
    }
    for (std::int64_t j = 0; j < c.length; ++j) {
      if (c.with_columns && chance(c.columns)) s.columns.push_back(static_cast<std::int32_t>(j));
    }
    s.column_begin.push_back(static_cast<std::int64_t>(s.columns.size()));
  }
  return s;
}

std::uint64_t naive_visible(const PrefillSelection& s, int list) {
  const auto columns = s.columns_of(list);
  const std::set<std::int32_t> kept(columns.begin(), columns.end());
  std::uint64_t pairs = 0;
  for (std::int64_t query = 0; query < s.length; ++query) {
    std::set<std::int64_t> seen;
    for (const BlockEntry& entry : s.row(list, query / kQueryBlockRows)) {
      for (std::int64_t i = 0; i < kBlockTokens; ++i) {
        if ((entry.pages() >> (i / kPageTokens) & 1U) != 0) seen.insert(entry.block() * kBlockTokens + i);
      }
    }
    seen.insert(kept.begin(), kept.end());
    pairs += static_cast<std::uint64_t>(
        std::count_if(seen.begin(), seen.end(), [&](std::int64_t key) { return key <= query; }));
  }
  return pairs;
}

void check(Gpu& gpu, const Case& c, std::uint64_t seed, bool naive) {
  CAPTURE(c.length);
  CAPTURE(c.lists);
  CAPTURE(c.pages);
  CAPTURE(c.columns);
  std::mt19937_64 rng(seed);
  const PrefillSelection s = draw(c, rng);
  std::int64_t stride = 0;
  for (int list = 0; list < c.lists; ++list)
    stride = std::max(stride, static_cast<std::int64_t>(s.columns_of(list).size()));
  stride += static_cast<std::int64_t>(rng() % 5);
  stride = std::min(stride, c.length);
  std::vector<std::int32_t> columns(static_cast<std::size_t>(c.lists * stride), -1), counts;
  for (int list = 0; list < c.lists; ++list) {
    const auto kept = s.columns_of(list);
    counts.push_back(static_cast<std::int32_t>(kept.size()));
    std::copy(kept.begin(), kept.end(), columns.begin() + list * stride);
  }
  columns.push_back(-1);  // no empty buffers
  std::vector<BlockEntry> entries = s.entries;
  entries.push_back({~0U});
  const auto on_device = gpu.upload(columns), column_counts = gpu.upload(counts),
             row_begin = gpu.upload(s.row_begin), entry_buffer = gpu.upload(entries);
  cuda::DevicePairCountsParams p;
  p.tokens = c.length;
  p.lists.heads = c.lists;
  p.lists.query_blocks = s.query_blocks();
  p.lists.row_begin = row_begin.as<std::int64_t>();
  p.lists.entries = entry_buffer.as<BlockEntry>();
  if (c.with_columns) {
    p.lists.columns = on_device.as<std::int32_t>();
    p.lists.column_stride = stride;
    p.lists.column_counts = column_counts.as<std::int32_t>();
  }
  p.first_executed = static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(s.query_blocks() + 2));
  auto workspace = gpu.poisoned(cuda::pair_counts_workspace(c.length, p.lists));
  const std::vector<std::uint64_t> before(static_cast<std::size_t>(2 * c.lists), 1000);  // added to
  auto sums = gpu.upload(before);
  p.workspace = workspace.data();
  p.visible = sums.as<std::uint64_t>();
  p.executed = p.visible + c.lists;
  p.stream = gpu.stream();
  cuda::count_pairs_on_device(p);
  gpu.synchronize();
  const auto got = gpu.download<std::uint64_t>(sums);
  const TokenRange executed[] = {{std::min(p.first_executed * kQueryBlockRows, c.length), c.length}};
  const PairCounts all = count_pairs(s), some = count_pairs(s, executed);
  for (std::size_t list = 0; list < static_cast<std::size_t>(c.lists); ++list) {
    const std::uint64_t visible = naive ? naive_visible(s, static_cast<int>(list)) : all.visible[list];
    CHECK(got[list] - 1000 == visible);
    const bool none = executed[0].size() <= 0;
    CHECK(got[static_cast<std::size_t>(c.lists) + list] - 1000 == (none ? 0 : some.executed[list]));
  }
}

}  // namespace

TEST_CASE("pairs of lists on the GPU: random pages and columns, any length") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  const double shares[] = {0, 0.02, 0.3, 0.9, 1};
  for (const std::int64_t length : {1, 15, 16, 17, 63, 64, 65, 128, 200, 513}) {
    for (int turn = 0; turn < 6; ++turn) {
      Case c;
      c.length = length;
      c.lists = 1 + static_cast<int>(rng() % 4);
      c.pages = shares[rng() % 5];
      c.columns = shares[rng() % 5];
      c.with_columns = turn != 5;
      check(gpu, c, rng(), true);
    }
  }
  for (const std::int64_t length : {5000, 20011}) {
    Case c;
    c.length = length;
    c.lists = 3;
    c.pages = 0.1;
    c.columns = 0.05;
    check(gpu, c, rng(), false);
    c.pages = c.columns = 1;
    check(gpu, c, rng(), false);
  }
}
