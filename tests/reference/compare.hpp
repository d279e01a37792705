// Distances between a result and its fp64 oracle.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

namespace reference {

// max |got − want| / max |want|; infinite where sizes differ or a value is not finite.
template <class Got>
double relative_error(const std::vector<Got>& got, const std::vector<double>& want) {
  if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
  double scale = 0, error = 0;
  for (double value : want) scale = std::max(scale, std::fabs(value));
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(got[i]) - want[i]);
    if (!(difference <= std::numeric_limits<double>::max())) return std::numeric_limits<double>::infinity();
    error = std::max(error, difference);
  }
  return scale == 0 ? error : error / scale;
}

}  // namespace reference
