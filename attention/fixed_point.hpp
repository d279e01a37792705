// Sums that feed a choice are kept in int64 fixed point with 40 fraction bits: addition is associative, so
// that any order, grid or shard border gives the same bits (DESIGN.md section 4). 2^23 values of at most 1
// fit.
#pragma once

#include <cmath>
#include <cstdint>

namespace tessera {

using Fixed = std::int64_t;
inline constexpr int kFixedFractionBits = 40;

inline Fixed to_fixed(double value) {
  return std::llrint(std::ldexp(value, kFixedFractionBits));
}
inline double from_fixed(Fixed value) {
  return std::ldexp(static_cast<double>(value), -kFixedFractionBits);
}

}  // namespace tessera
