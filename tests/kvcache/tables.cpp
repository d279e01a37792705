// Block tables without bytes: what a cache that lies elsewhere than in host memory goes by.
#include <doctest/doctest.h>

#include <numeric>
#include <vector>

#include "kvcache/block_tables.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/random.hpp"

using namespace tessera;

namespace {

constexpr KvShape kShape = {3, 2, 64, DType::kBF16};

std::vector<std::int32_t> positions_to(std::int32_t end) {
  std::vector<std::int32_t> positions(static_cast<std::size_t>(end));
  std::iota(positions.begin(), positions.end(), 0);
  return positions;
}

}  // namespace

TEST_CASE("a mirror that copies the changed layers has the tables, whatever happens to them") {
  BlockTables tables(kShape, 200);
  CounterRng rng(5, 0);
  const int sequence = tables.add_sequence(640);
  const auto stride = static_cast<std::size_t>(tables.stride(sequence));
  const std::size_t layer_size = stride * static_cast<std::size_t>(kShape.kv_heads);
  std::vector<std::int32_t> mirror(tables.tables(sequence).size(), kNoSlot);
  for (int step = 0; step < 400; ++step) {
    const int layer = static_cast<int>(rng.below(3));
    const auto position = static_cast<std::int32_t>(rng.below(640));
    const bool packed = tables.is_packed(sequence, layer);
    switch (rng.below(4)) {
      case 0:
      case 1:
        if (packed && tables.rows(sequence, layer).front() >= 640) break;
        tables.extend(sequence, layer, {&position, 1});
        break;
      case 2:
        if (!packed) tables.release_between(sequence, layer, position, position + 200);
        break;
      default:
        if (packed || step < 200 || layer == 0) break;
        const std::vector<std::int32_t> kept = positions_to(position);
        std::vector<std::int32_t> both = kept;
        both.insert(both.end(), kept.begin(), kept.end());
        const auto size = static_cast<std::int64_t>(kept.size());
        const std::vector<std::int64_t> begin = {0, size, 2 * size};
        tables.evict(sequence, layer, {begin, both});
    }
    if (step % 3 != 0) continue;
    const LayerRange changed = tables.take_changed(sequence);
    for (std::size_t i = static_cast<std::size_t>(changed.first) * layer_size;
         i < static_cast<std::size_t>(changed.last) * layer_size; ++i) {
      mirror[i] = tables.tables(sequence)[i];
    }
    REQUIRE(std::equal(mirror.begin(), mirror.end(), tables.tables(sequence).begin()));
    const LayerRange again = tables.take_changed(sequence);
    CHECK(again.first == again.last);
  }
}

TEST_CASE("moves of an eviction, made in order, bring the kept rows to the front of each head") {
  BlockTables tables(kShape, 60);
  CounterRng rng(6, 0);
  const int sequence = tables.add_sequence(600);
  const std::vector<std::int32_t> all = positions_to(500);
  tables.extend(sequence, 1, all);
  // What a row of the pool holds: its head and position.
  std::vector<std::int64_t> pool(60 * kBlockTokens, -1);
  const auto row_of = [&](int head, std::int64_t row) {
    const std::int32_t* table = tables.table(sequence, 1) + head * tables.stride(sequence);
    return static_cast<std::size_t>(table[row / kBlockTokens] * kBlockTokens + row % kBlockTokens);
  };
  for (int head = 0; head < 2; ++head) {
    for (const std::int32_t position : all) pool[row_of(head, position)] = 1000 * head + position;
  }
  std::vector<std::int64_t> begin = {0};
  std::vector<std::int32_t> kept;
  for (int head = 0; head < 2; ++head) {
    for (const std::int32_t position : all) {
      if (rng.below(3) == 0) kept.push_back(position);
    }
    begin.push_back(static_cast<std::int64_t>(kept.size()));
  }
  for (const std::vector<RowMove>& head : tables.evict(sequence, 1, {begin, kept})) {
    for (const RowMove& move : head) {
      pool[static_cast<std::size_t>(move.target)] = pool[static_cast<std::size_t>(move.source)];
    }
  }
  for (int head = 0; head < 2; ++head) {
    const std::int64_t rows = tables.rows(sequence, 1)[static_cast<std::size_t>(head)];
    REQUIRE(rows == begin[static_cast<std::size_t>(head) + 1] - begin[static_cast<std::size_t>(head)]);
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int32_t position =
          kept[static_cast<std::size_t>(begin[static_cast<std::size_t>(head)] + row)];
      CHECK(pool[row_of(head, row)] == 1000 * head + position);
    }
  }
  const std::int64_t rows = tables.rows(sequence, 1)[0];
  const std::int32_t next = 500;
  tables.extend(sequence, 1, {&next, 1});  // goes behind them
  CHECK(tables.rows(sequence, 1)[0] == rows + 1);
  tables.remove_sequence(sequence);
  CHECK(tables.used_slots() == 0);
}
