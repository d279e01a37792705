// Logits of the whole vocabulary from the parts of the tp ranks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/communicator.hpp"

namespace tessera {

// part: (rows, V of this rank), by vocab_begin. Returns (rows, V) on every rank. Collective.
std::vector<float> gather_vocabulary(Communicator& tp, std::span<const float> part, std::int64_t rows,
                                     std::int64_t vocab);

}  // namespace tessera
