// Keys and values of a test laid out as the block table wants them: slots in shuffled order in a pool, and
// every byte that no key owns (rows past the length, slots of blocks that are not held) filled with NaN.
#pragma once

#include <cstring>
#include <limits>
#include <vector>

#include "kvcache/kv_view.hpp"
#include "runtime/core/random.hpp"
#include "tests/reference/naive_attention.hpp"

namespace tessera::testing {

inline std::vector<float> random_floats(std::size_t count, std::uint64_t stream, float scale = 1.0f) {
  CounterRng rng(17, stream);
  std::vector<float> values(count);
  for (float& value : values) value = scale * static_cast<float>(2.0 * rng.uniform() - 1.0);
  return values;
}

struct PagedKeys {
  std::vector<std::byte> pool;
  std::vector<std::int32_t> table;
  KvView view;

  // k, v: (length, kv_heads, head_dim), rounded in place to dtype so that an oracle sees what the cache
  // holds.
  template <class Held>
  PagedKeys(std::vector<float>& k, std::vector<float>& v, std::int64_t length, int kv_heads, int head_dim,
            DType dtype, const Held& block_held) {
    view.dtype = dtype;
    view.kv_heads = kv_heads;
    view.head_dim = head_dim;
    view.length = length;
    view.blocks = ceil_div(length, kBlockTokens);
    view.table_stride = view.blocks + 3;
    view.slot_bytes = 2ull * kBlockTokens * static_cast<std::size_t>(head_dim) * size_of(dtype);
    const std::int64_t slots = kv_heads * view.blocks + 1;
    const std::vector<float> poison(view.slot_bytes * slots / size_of(dtype),
                                    std::numeric_limits<float>::quiet_NaN());
    pool.resize(view.slot_bytes * static_cast<std::size_t>(slots));
    convert_from_float(poison.data(), dtype, pool.data(), poison.size());
    table.assign(static_cast<std::size_t>(kv_heads * view.table_stride), kNoSlot);
    std::int32_t next = static_cast<std::int32_t>(slots);
    for (int head = 0; head < kv_heads; ++head) {
      for (std::int64_t block = 0; block < view.blocks; ++block) {
        if (!block_held(head, block)) continue;
        const std::int32_t slot = --next;
        table[static_cast<std::size_t>(head * view.table_stride + block)] = slot;
        for (std::int64_t row = 0; row < kBlockTokens && block * kBlockTokens + row < length; ++row) {
          const std::size_t source =
              static_cast<std::size_t>(((block * kBlockTokens + row) * kv_heads + head) * head_dim);
          std::byte* key = pool.data() + slot * view.slot_bytes + row * head_dim * size_of(dtype);
          std::byte* value = key + view.slot_bytes / 2;
          convert_from_float(k.data() + source, dtype, key, static_cast<std::size_t>(head_dim));
          convert_from_float(v.data() + source, dtype, value, static_cast<std::size_t>(head_dim));
          convert_to_float(key, dtype, k.data() + source, static_cast<std::size_t>(head_dim));
          convert_to_float(value, dtype, v.data() + source, static_cast<std::size_t>(head_dim));
        }
      }
    }
    view.slots = pool.data();
    view.table = table.data();
  }
  PagedKeys(const PagedKeys&) = delete;
  PagedKeys& operator=(const PagedKeys&) = delete;
};

}  // namespace tessera::testing
