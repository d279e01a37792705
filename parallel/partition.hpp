// How the tokens of one sequence are shared over sequence-parallel ranks: 2·R chunks, each a multiple of 128
// tokens (the last one ends at S); rank r owns chunks r and 2R−1−r, which balances causal work. Chunks may be
// empty. Tokens generated after the prompt go block by block: see owner_of_block.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "runtime/core/tensor.hpp"

namespace tessera {

struct TokenRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - begin; }
};

class SequencePartition {
 public:
  SequencePartition(std::int64_t length, int ranks);

  std::int64_t length() const { return length_; }
  int ranks() const { return ranks_; }
  std::array<TokenRange, 2> ranges_of(int rank) const;  // in order of position; either may be empty
  std::int64_t tokens_of(int rank) const;
  std::vector<std::int32_t> positions_of(
      int rank) const;  // ascending global positions, tokens_of(rank) of them
  // The rank that holds the keys and values of logical block `block` (64 tokens). Blocks of the prompt lie
  // with their chunk; the block that the prompt leaves part-filled continues where it lies; later blocks go
  // round-robin.
  int owner_of_block(std::int64_t block) const;

 private:
  std::int64_t length_;
  int ranks_;
  std::vector<std::int64_t> chunk_begin_;  // 2R + 1 boundaries
};

}  // namespace tessera
