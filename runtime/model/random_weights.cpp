#include <cmath>

#include "runtime/core/random.hpp"
#include "runtime/model/weights.hpp"

namespace tessera {
RandomValues random_values_of(const TensorSpec& spec, const ModelConfig& config) {
  switch (spec.role) {
    case TensorRole::kQBias:
    case TensorRole::kKBias:
    case TensorRole::kVBias:
      return {0.0f, 0.1f};
    default:
      break;
  }
  if (spec.is_vector) return {1.0f - config.norm_weight_offset, 0.1f};  // a norm's scale
  return {0.0f, static_cast<float>(std::sqrt(3.0 / static_cast<double>(spec.columns)))};
}

void draw_random(const TensorSpec& spec, const ModelConfig& config, std::uint64_t seed, const Slice& slice,
                 DType dtype, std::byte* target) {
  const RandomValues d = random_values_of(spec, config);
  const std::uint64_t stream = stream_of(spec.name);
#pragma omp parallel
  {
    std::vector<float> row(static_cast<std::size_t>(slice.columns()));
#pragma omp for schedule(static)
    for (std::int64_t r = 0; r < slice.rows(); ++r) {
      const std::int64_t first = (slice.row_begin + r) * spec.columns + slice.column_begin;
      for (std::int64_t c = 0; c < slice.columns(); ++c) {
        const std::uint64_t bits = hash_counter(seed, stream, static_cast<std::uint64_t>(first + c)) >> 40;
        const float unit = static_cast<float>(bits) * 0x1.0p-23f - 1.0f;  // [−1, 1), 24 bits: exact in fp32
        row[c] = d.center + d.half_width * unit;
      }
      convert_from_float(row.data(), dtype,
                         target + static_cast<std::size_t>(r * slice.columns()) * size_of(dtype), row.size());
    }
  }
}

}  // namespace tessera
