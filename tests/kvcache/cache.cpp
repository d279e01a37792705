// The cache against a naive map from (sequence, layer, position, head) to values, under random operations.
#include "kvcache/kv_cache.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <vector>

#include "runtime/core/error.hpp"
#include "runtime/core/random.hpp"

using namespace tessera;

namespace {

struct Row {
  std::vector<float> k, v;  // (K, D), before rounding
};

// What one sequence of the model holds: by layer, by position.
struct ModelSequence {
  std::int64_t max_tokens;
  std::vector<std::map<std::int64_t, Row>> layers;
};

float value_at(const std::byte* slot_half, DType dtype, int head_dim, std::int64_t position, int d) {
  float value = 0;
  const std::size_t index = static_cast<std::size_t>(position % 64) * static_cast<std::size_t>(head_dim) +
                            static_cast<std::size_t>(d);
  convert_to_float(slot_half + index * size_of(dtype), dtype, &value, 1);
  return value;
}

float rounded(float value, DType dtype) {
  if (dtype == DType::kBF16) return to_float(to_bfloat16(value));
  if (dtype == DType::kF16) return to_float(to_float16(value));
  return value;
}

class Tester {
 public:
  Tester(KvShape shape, std::int64_t slots, std::uint64_t seed)
      : shape_(shape), cache_(shape, slots, meter_), rng_(seed, stream_of("kv cache")) {
    cache_.poison_new_slots(true);
  }

  void add() {
    const auto max_tokens = static_cast<std::int64_t>(rng_.below(700));
    const int handle = cache_.add_sequence(max_tokens);
    CHECK(model_.count(handle) == 0);
    model_[handle] = {max_tokens,
                      std::vector<std::map<std::int64_t, Row>>(static_cast<std::size_t>(shape_.layers))};
  }

  void append(int handle) {
    ModelSequence& sequence = model_[handle];
    if (sequence.max_tokens == 0) return;
    const int layer = any_layer();
    const auto begin = static_cast<std::int64_t>(rng_.below(static_cast<std::uint64_t>(sequence.max_tokens)));
    const auto step =
        static_cast<std::int64_t>(1 + rng_.below(70));  // gaps: other ranks hold what lies between
    std::vector<std::int32_t> positions;
    for (std::int64_t p = begin; p < sequence.max_tokens && positions.size() < 40; p += step) {
      positions.push_back(static_cast<std::int32_t>(p));
    }
    const std::int64_t width = std::int64_t{shape_.kv_heads} * shape_.head_dim;
    const std::int64_t stride = width + static_cast<std::int64_t>(rng_.below(3)) * 5;
    std::vector<float> k(positions.size() * static_cast<std::size_t>(stride), 1e30f), v = k;
    for (std::size_t t = 0; t < positions.size(); ++t) {
      Row row;
      for (std::int64_t i = 0; i < width; ++i) {
        row.k.push_back(static_cast<float>(rng_.uniform() * 20 - 10));
        row.v.push_back(static_cast<float>(rng_.uniform() * 20 - 10));
        k[t * static_cast<std::size_t>(stride) + static_cast<std::size_t>(i)] = row.k.back();
        v[t * static_cast<std::size_t>(stride) + static_cast<std::size_t>(i)] = row.v.back();
      }
      sequence.layers[static_cast<std::size_t>(layer)][positions[t]] = row;
    }
    cache_.append({handle, layer, static_cast<std::int64_t>(positions.size()), positions.data(), k.data(),
                   v.data(), stride});
  }

  void release(int handle) {
    ModelSequence& sequence = model_[handle];
    const int layer = any_layer();
    const auto position = static_cast<std::int64_t>(rng_.below(800));
    cache_.release_before(handle, layer, position);
    auto& rows = sequence.layers[static_cast<std::size_t>(layer)];
    rows.erase(rows.begin(), rows.lower_bound(position / 64 * 64));
  }

  void remove(int handle) {
    cache_.remove_sequence(handle);
    model_.erase(handle);
  }

  // Fetches some blocks that this rank lacks, checks that they are seen and nothing else changed, sends them
  // away.
  void visit(int handle, bool drop) {
    ModelSequence& sequence = model_[handle];
    const int layer = any_layer();
    const std::set<std::int64_t> own = blocks_of(sequence, layer);
    const std::int64_t used = cache_.used_slots();
    std::map<std::pair<int, std::int64_t>, std::byte> placed;
    for (std::int64_t block = 0; block < ceil_div(sequence.max_tokens, 64); ++block) {
      for (int head = 0; head < shape_.kv_heads; ++head) {
        if (own.count(block) != 0 || rng_.below(2) == 0) continue;
        std::byte* bytes = cache_.place_guest(handle, layer, head, block);
        CHECK(bytes[shape_.slot_bytes() - 1] == std::byte{0xff});  // poisoned
        CHECK(cache_.place_guest(handle, layer, head, block) == bytes);
        const auto mark = static_cast<std::byte>(rng_.below(128));
        std::memset(bytes, static_cast<int>(mark), shape_.slot_bytes());
        placed[{head, block}] = mark;
      }
    }
    CHECK(cache_.used_slots() == used + static_cast<std::int64_t>(placed.size()));
    const KvView view = cache_.view(handle, layer, sequence.max_tokens);
    for (const auto& [where, mark] : placed) {
      REQUIRE(view.holds(where.first, where.second));
      CHECK(view.values(where.first, where.second)[view.slot_bytes / 2 - 1] == mark);
    }
    CHECK(local_blocks(handle, layer) == own);
    check_rows(handle, layer);
    if (drop) {
      cache_.drop_guests(handle, layer);
      CHECK(cache_.used_slots() == used);
    } else {
      remove(handle);
    }
  }

  void check() {
    std::int64_t slots = 0;
    for (const auto& [handle, sequence] : model_) {
      for (int layer = 0; layer < shape_.layers; ++layer) {
        const std::set<std::int64_t> own = blocks_of(sequence, layer);
        CHECK(local_blocks(handle, layer) == own);
        slots += static_cast<std::int64_t>(own.size()) * shape_.kv_heads;
        const KvView view = cache_.view(handle, layer, sequence.max_tokens);
        CHECK(view.blocks == ceil_div(sequence.max_tokens, 64));
        for (std::int64_t block = 0; block < view.blocks; ++block) {
          for (int head = 0; head < shape_.kv_heads; ++head)
            CHECK(view.holds(head, block) == (own.count(block) != 0));
        }
        check_rows(handle, layer);
      }
    }
    CHECK(cache_.used_slots() == slots);
  }

  void run(int operations) {
    for (int i = 0; i < operations; ++i) {
      const auto operation = rng_.below(12);
      if (model_.empty() || (operation == 0 && model_.size() < 4)) {
        add();
        continue;
      }
      auto chosen = model_.begin();
      std::advance(chosen, static_cast<std::ptrdiff_t>(rng_.below(model_.size())));
      const int handle = chosen->first;
      if (operation == 1) {
        remove(handle);
      } else if (operation == 2) {
        release(handle);
      } else if (operation <= 4) {
        visit(handle, rng_.below(4) != 0);
      } else {
        append(handle);
      }
      if (i % 20 == 0) check();
    }
    check();
    while (!model_.empty()) remove(model_.begin()->first);
    CHECK(cache_.used_slots() == 0);
    CHECK(cache_.peak_used_slots() > 0);
  }

 private:
  int any_layer() { return static_cast<int>(rng_.below(static_cast<std::uint64_t>(shape_.layers))); }

  static std::set<std::int64_t> blocks_of(const ModelSequence& sequence, int layer) {
    std::set<std::int64_t> blocks;
    for (const auto& [position, row] : sequence.layers[static_cast<std::size_t>(layer)])
      blocks.insert(position / 64);
    return blocks;
  }

  std::set<std::int64_t> local_blocks(int handle, int layer) const {
    const auto blocks = cache_.local_blocks(handle, layer);
    CHECK(std::is_sorted(blocks.begin(), blocks.end()));
    return {blocks.begin(), blocks.end()};
  }

  void check_rows(int handle, int layer) {
    const ModelSequence& sequence = model_[handle];
    const KvView view = cache_.view(handle, layer, sequence.max_tokens);
    bool equal = true;
    for (const auto& [position, row] : sequence.layers[static_cast<std::size_t>(layer)]) {
      for (int head = 0; head < shape_.kv_heads; ++head) {
        REQUIRE(view.holds(head, position / 64));
        for (int d = 0; d < shape_.head_dim; ++d) {
          const auto i = static_cast<std::size_t>(head * shape_.head_dim + d);
          equal = equal && value_at(view.keys(head, position / 64), view.dtype, view.head_dim, position, d) ==
                               rounded(row.k[i], shape_.dtype);
          equal = equal && value_at(view.values(head, position / 64), view.dtype, view.head_dim, position,
                                    d) == rounded(row.v[i], shape_.dtype);
        }
      }
    }
    CHECK(equal);
  }

  KvShape shape_;
  MemoryMeter meter_;
  KvCache cache_;
  CounterRng rng_;
  std::map<int, ModelSequence> model_;
};

}  // namespace

TEST_CASE("random operations keep the cache equal to a map") {
  const KvShape shapes[] = {
      {1, 1, 1, DType::kF32}, {3, 2, 5, DType::kBF16}, {2, 3, 8, DType::kF16}, {4, 1, 16, DType::kF32}};
  for (const KvShape& shape : shapes) {
    for (std::uint64_t seed = 0; seed < 3; ++seed) Tester(shape, 1000, seed).run(400);
  }
}

TEST_CASE("an exhausted pool is a resource error that takes no slot, and gives what it has again") {
  MemoryMeter meter;
  const KvShape shape{1, 2, 4, DType::kF32};
  KvCache cache(shape, 5, meter);  // two blocks of two heads, and one slot that no block can use
  CHECK(meter.current(MemoryKind::kKv) == 5 * 2 * 64 * 4 * 4);
  const int sequence = cache.add_sequence(1000);
  const std::vector<float> row(8, 1.0f);
  const auto append = [&](std::int32_t position) {
    cache.append({sequence, 0, 1, &position, row.data(), row.data(), 8});
  };
  append(0);
  append(64);
  CHECK_THROWS_AS(append(128), ResourceError);
  CHECK(cache.used_slots() == 4);
  CHECK(cache.local_blocks(sequence, 0) == std::vector<std::int32_t>{0, 1});
  append(127);  // rows of blocks held already need nothing
  cache.place_guest(sequence, 0, 1, 9);
  CHECK_THROWS_AS(cache.place_guest(sequence, 0, 0, 9), ResourceError);
  cache.drop_guests(sequence, 0);
  cache.release_before(sequence, 0, 127);  // block 1 still holds position 127
  CHECK(cache.local_blocks(sequence, 0) == std::vector<std::int32_t>{1});
  append(999);
  CHECK(cache.used_slots() == 4);
  CHECK(cache.peak_used_slots() == 5);
  cache.remove_sequence(sequence);
  CHECK(cache.used_slots() == 0);
}

TEST_CASE("a pool that cannot be addressed is refused before anything is allocated") {
  MemoryMeter meter;
  CHECK_THROWS_AS(KvCache({1, 1, 128, DType::kF32}, std::int64_t{1} << 40, meter), ResourceError);
  CHECK(meter.peak(MemoryKind::kKv) == 0);
}

TEST_CASE("misuse is an internal error, not a write elsewhere") {
  MemoryMeter meter;
  KvCache cache({2, 1, 4, DType::kF32}, 10, meter);
  const int sequence = cache.add_sequence(65);
  const std::vector<float> row(4, 1.0f);
  const auto append = [&](int handle, int layer, std::int32_t position) {
    cache.append({handle, layer, 1, &position, row.data(), row.data(), 4});
  };
  append(sequence, 0, 64);
  CHECK_THROWS_AS(append(sequence, 0, 65), InternalError);  // past max_tokens
  CHECK_THROWS_AS(append(sequence, 0, -1), InternalError);
  CHECK_THROWS_AS(append(sequence, 2, 0), InternalError);
  CHECK_THROWS_AS(append(sequence + 1, 0, 0), InternalError);
  CHECK_THROWS_AS(cache.view(sequence, 0, 66), InternalError);
  CHECK_THROWS_AS(cache.place_guest(sequence, 0, 0, 1), InternalError);  // a block of its own
  cache.place_guest(sequence, 0, 0, 0);
  CHECK_THROWS_AS(cache.place_guest(sequence, 1, 0, 0), InternalError);  // one layer at a time
  CHECK_THROWS_AS(append(sequence, 0, 3), InternalError);                // rows of a guest are another rank's
  cache.remove_sequence(sequence);
  CHECK_THROWS_AS(cache.remove_sequence(sequence), InternalError);
  CHECK(cache.used_slots() == 0);
}

TEST_CASE("rows never written keep the poison") {
  MemoryMeter meter;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    KvCache cache({1, 1, 2, dtype}, 1, meter);
    cache.poison_new_slots(true);
    const int sequence = cache.add_sequence(64);
    const float row[2] = {1, 2};
    const std::int32_t position = 5;
    cache.append({sequence, 0, 1, &position, row, row, 2});
    const KvView view = cache.view(sequence, 0, 6);
    CHECK(value_at(view.keys(0, 0), dtype, 2, 5, 1) == 2.0f);
    CHECK(std::isnan(value_at(view.keys(0, 0), dtype, 2, 4, 0)));
    CHECK(std::isnan(value_at(view.values(0, 0), dtype, 2, 6, 1)));
  }
}
