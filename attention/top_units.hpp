// The units with the highest scores under a total order: score descending, then index ascending.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace tessera {

// Indices of the `count` highest scores (all, when there are fewer), ascending. Score: an integer type; for
// floats take ordered_bits, which also gives NaN a place.
template <class Score>
std::vector<std::int32_t> top_units(std::span<const Score> scores, std::int64_t count) {
  const std::size_t keep =
      static_cast<std::size_t>(std::clamp<std::int64_t>(count, 0, static_cast<std::int64_t>(scores.size())));
  std::vector<std::int32_t> kept;
  if (keep == 0) return kept;
  kept.resize(keep);
  std::vector<Score> order(scores.begin(), scores.end());
  const auto border = order.begin() + static_cast<std::ptrdiff_t>(keep - 1);
  std::nth_element(order.begin(), border, order.end(), std::greater<Score>());
  const Score least = *border;
  // All above the border's score, and the first of those that equal it. Written without branches: which unit
  // is kept is not to be predicted.
  std::int64_t ties = static_cast<std::int64_t>(keep);
  for (auto it = order.begin(); it != border; ++it) ties -= *it > least ? 1 : 0;
  std::size_t found = 0;
  for (std::size_t i = 0; i < scores.size() && found < keep; ++i) {
    const bool tied = scores[i] == least;
    kept[found] = static_cast<std::int32_t>(i);
    found += static_cast<std::size_t>((scores[i] > least) | (tied & (ties > 0)));
    ties -= tied;
  }
  return kept;
}

// Integers in the order of floats; both zeros are equal.
inline std::int32_t ordered_bits(float value) {
  const std::int32_t bits = std::bit_cast<std::int32_t>(value + 0.0f);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

}  // namespace tessera
