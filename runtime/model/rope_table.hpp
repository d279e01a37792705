// Cosines and sines of rotary embedding for all positions of a run, computed once.
#pragma once

#include <cstdint>

#include "io/model_config.hpp"
#include "runtime/core/memory.hpp"

namespace tessera {

struct RopeTable {
  Buffer values;  // cosines (positions, D/2), then sines (positions, D/2)
  std::int64_t positions = 0;
  std::int64_t half = 0;  // D/2

  const float* cosines() const { return values.floats(); }
  const float* sines() const { return values.floats() + positions * half; }
};

// Angles are position · inverse frequency in fp32, as the reference computes them; cos and sin are scaled by
// the rope's attention factor.
RopeTable make_rope_table(const RopeConfig& rope, std::int64_t head_dim, std::int64_t positions,
                          MemoryMeter& meter);

}  // namespace tessera
