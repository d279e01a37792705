// Shapes of attention for `tessera bench` as one word: D128-H64-K8-128K-N8.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

struct BenchShape {
  int head_dim = 0;         // D
  int heads = 0;            // H
  int kv_heads = 0;         // K, a divisor of H
  std::int64_t length = 0;  // S tokens of a sequence
  int sequences = 1;        // N
};

// D<64|128|256>-H<heads>-K<KV heads>-<tokens>[K][-N<sequences>]; UsageError starts with `where`.
BenchShape parse_bench_shape(std::string_view text, const std::string& where);
std::string name_of(const BenchShape& shape);

}  // namespace tessera
