// The cache on the device against the tables on the host: mirrored tables, keys read back, rows of evicted
// heads where the host says they lie.
#include <doctest/doctest.h>

#include <numeric>

#include "kvcache/device_kv_cache.hpp"
#include "runtime/core/random.hpp"
#include "tests/cuda_support.hpp"

using namespace tessera;
using cuda_test::Gpu;

namespace {

constexpr KvShape kShape = {3, 2, 64, DType::kBF16, true};
constexpr std::int64_t kSlots = 120, kMaxTokens = 1000;
constexpr std::int64_t kRow = 64;  // elements

struct Cache {
  Cache() : pool(gpu.stream(), gpu.meter()), cache(kShape, {kSlots, kMaxTokens, 2}, pool, gpu.meter()) {}
  Gpu gpu;
  cuda::StreamPool pool;
  cuda::DeviceKvCache cache;

  template <typename T>
  std::vector<T> read(const void* device, std::size_t count) {
    std::vector<T> values(count);
    cuda::copy_to_host(values.data(), device, count * sizeof(T), gpu.stream());
    gpu.synchronize();
    return values;
  }
};

std::vector<std::int32_t> positions_to(std::int32_t end) {
  std::vector<std::int32_t> positions(static_cast<std::size_t>(end));
  std::iota(positions.begin(), positions.end(), 0);
  return positions;
}

}  // namespace

TEST_CASE("tables are mirrored, shorter sequences and released blocks included") {
  Cache c;
  const int longer = c.cache.add_sequence(kMaxTokens), shorter = c.cache.add_sequence(300);
  for (const int sequence : {longer, shorter}) {
    for (int layer = 0; layer < kShape.layers; ++layer) {
      c.cache.tables().extend(sequence, layer, positions_to(sequence == longer ? 700 : 290));
      c.cache.mirror(sequence);
    }
  }
  c.cache.tables().release_between(longer, 1, 4, 500);
  c.cache.mirror(longer);
  for (const int sequence : {longer, shorter}) {
    const std::int64_t stride = c.cache.tables().stride(sequence);
    for (int layer = 0; layer < kShape.layers; ++layer) {
      const auto device = c.read<std::int32_t>(c.cache.table(sequence, layer),
                                               static_cast<std::size_t>(kShape.kv_heads * c.cache.stride()));
      for (int head = 0; head < kShape.kv_heads; ++head) {
        for (std::int64_t block = 0; block < c.cache.stride(); ++block) {
          const std::int32_t want =
              block < stride ? c.cache.tables().table(sequence, layer)[head * stride + block] : kNoSlot;
          CHECK(device[static_cast<std::size_t>(head * c.cache.stride() + block)] == want);
        }
      }
    }
  }
}

TEST_CASE("an eviction moves the kept rows of K and V to the front, and a step counts the new ones") {
  Cache c;
  constexpr std::int32_t kTokens = 500;
  const int sequence = c.cache.add_sequence(kMaxTokens);
  c.cache.tables().extend(sequence, 1, positions_to(kTokens));
  c.cache.mirror(sequence);
  // Every element of the pool is its own number, as far as 16 bits go.
  const std::size_t elements = static_cast<std::size_t>(kSlots) * kShape.slot_bytes() / 2;
  std::vector<std::uint16_t> pool(elements);
  for (std::size_t i = 0; i < elements; ++i) pool[i] = static_cast<std::uint16_t>(i / 8 * 7 + i);
  cuda::copy_to_device(c.cache.slots(), pool.data(), elements * 2, c.gpu.stream());
  const auto element = [&](const std::int32_t* table, std::int64_t stride, int head, std::int64_t row,
                           bool value) {
    const std::size_t slot = static_cast<std::size_t>(table[head * stride + row / kBlockTokens]);
    return slot * kShape.slot_bytes() / 2 +
           static_cast<std::size_t>((value ? kBlockTokens : 0) + row % kBlockTokens) * kRow;
  };
  const std::int64_t stride = c.cache.tables().stride(sequence);
  const std::int32_t* table = c.cache.tables().table(sequence, 1);
  const std::vector<std::int32_t> before(table, table + kShape.kv_heads * stride);

  cuda::DeviceBuffer keys = c.gpu.poisoned(static_cast<std::size_t>(kTokens * kShape.kv_heads * kRow) * 2);
  c.cache.gather_keys(sequence, 1, kTokens, keys.data());
  const auto gathered = c.gpu.download<std::uint16_t>(keys);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (int head = 0; head < kShape.kv_heads; ++head) {
      const std::size_t from = element(before.data(), stride, head, t, false);
      const std::size_t at = static_cast<std::size_t>((t * kShape.kv_heads + head) * kRow);
      CHECK(std::equal(pool.begin() + static_cast<std::ptrdiff_t>(from),
                       pool.begin() + static_cast<std::ptrdiff_t>(from + kRow),
                       gathered.begin() + static_cast<std::ptrdiff_t>(at)));
    }
  }

  CounterRng rng(9, 0);
  std::vector<std::int64_t> begin = {0};
  std::vector<std::int32_t> kept;
  for (int head = 0; head < kShape.kv_heads; ++head) {
    for (std::int32_t position = 0; position < kTokens; ++position) {
      if (rng.below(static_cast<std::uint64_t>(head) + 2) == 0) kept.push_back(position);
    }
    begin.push_back(static_cast<std::int64_t>(kept.size()));
  }
  c.cache.evict(sequence, 1, {begin, kept});
  const auto after = c.read<std::uint16_t>(c.cache.slots(), elements);
  const auto mirrored = c.read<std::int32_t>(c.cache.table(sequence, 1),
                                             static_cast<std::size_t>(kShape.kv_heads * c.cache.stride()));
  for (int head = 0; head < kShape.kv_heads; ++head) {
    const std::int64_t rows =
        begin[static_cast<std::size_t>(head) + 1] - begin[static_cast<std::size_t>(head)];
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int32_t position =
          kept[static_cast<std::size_t>(begin[static_cast<std::size_t>(head)] + row)];
      for (const bool value : {false, true}) {
        const std::size_t from = element(before.data(), stride, head, position, value);
        const std::size_t to = element(mirrored.data(), c.cache.stride(), head, row, value);
        CHECK(std::equal(pool.begin() + static_cast<std::ptrdiff_t>(from),
                         pool.begin() + static_cast<std::ptrdiff_t>(from + kRow),
                         after.begin() + static_cast<std::ptrdiff_t>(to)));
      }
    }
  }

  const cuda::DeviceBuffer handles = c.gpu.upload(std::vector<std::int32_t>{sequence});
  for (std::int64_t step = 0; step < 3; ++step) {
    c.cache.begin_step(handles.as<std::int32_t>(), 1);
    const auto rows = c.read<std::int32_t>(c.cache.step_rows(1), 2);
    const auto held = c.read<std::int64_t>(c.cache.rows(1) + sequence * kShape.kv_heads, 2);
    const auto tables = c.read<const std::int32_t*>(c.cache.step_tables(1), 1);
    CHECK(tables.front() == c.cache.table(sequence, 1));
    for (std::size_t head = 0; head < 2; ++head) {
      CHECK(held[head] == begin[head + 1] - begin[head] + step);
      CHECK(rows[head] == held[head] + 1);
    }
    c.cache.end_step(handles.as<std::int32_t>(), 1);
  }
}
