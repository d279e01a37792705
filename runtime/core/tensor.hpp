// Views of arrays, and the letters in which every shape of the project is stated.
//
//   N sequences in a batch           T tokens in this call on this rank   S length of the whole sequence
//   H query heads                    K KV heads                           G = H / K
//   D head dimension                 E hidden size                        F MLP size
//   V vocabulary                     L layers                             R ranks
//   B = 64 tokens a block            P = 16 tokens a page                 M = 64 rows a query block
//
// Heads are those of this rank unless the name says global_.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime/core/dtype.hpp"

namespace tessera {

inline constexpr int kBlockTokens = 64;       // B
inline constexpr int kPageTokens = 16;        // P
inline constexpr int kQueryBlockRows = 64;    // M
inline constexpr int kPartitionTokens = 128;  // sequence parallel shards tokens in multiples of this

constexpr std::int64_t ceil_div(std::int64_t value, std::int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

// A matrix that somebody else owns: rows × columns, row-major and contiguous, at any byte alignment
// (safetensors data need not be aligned).
struct MatrixView {
  const std::byte* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  DType dtype = DType::kF32;

  std::size_t bytes() const { return static_cast<std::size_t>(rows) * columns * size_of(dtype); }
};

}  // namespace tessera
