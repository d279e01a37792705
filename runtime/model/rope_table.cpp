#include "runtime/model/rope_table.hpp"

#include <cmath>

namespace tessera {

RopeTable make_rope_table(const RopeConfig& rope, std::int64_t head_dim, std::int64_t positions,
                          MemoryMeter& meter) {
  const RopeFrequencies frequencies = rope_frequencies(rope, head_dim);
  RopeTable table;
  table.positions = positions;
  table.half = head_dim / 2;
  table.values = Buffer(static_cast<std::size_t>(2 * positions * table.half) * sizeof(float),
                        MemoryKind::kWorkspace, meter);
  float* cosines = table.values.floats();
  float* sines = cosines + positions * table.half;
  const float scale = static_cast<float>(frequencies.attention_scale);
#pragma omp parallel for schedule(static)
  for (std::int64_t p = 0; p < positions; ++p) {
    for (std::int64_t i = 0; i < table.half; ++i) {
      const float angle = static_cast<float>(p) * static_cast<float>(frequencies.inverse[i]);
      cosines[p * table.half + i] = std::cos(angle) * scale;
      sines[p * table.half + i] = std::sin(angle) * scale;
    }
  }
  return table;
}

}  // namespace tessera
