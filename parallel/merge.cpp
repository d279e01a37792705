#include "parallel/merge.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/core/error.hpp"

namespace tessera {
namespace {

constexpr float kEmpty = -std::numeric_limits<float>::infinity();

// Below this many floats read, starting threads costs more than the merge.
constexpr std::int64_t kParallelFloats = 1 << 16;

void merge_row(const MergeParams& p, std::int64_t row) {
  float* out = p.out + row * p.head_dim;
  float top = kEmpty;
  for (int r = 0; r < p.partials; ++r) top = std::max(top, p.lses[r][row]);

  // A NaN is not an empty partial: it compares false in the maximum, and reaches the result here.
  float sum = 0;
  for (int r = 0; r < p.partials; ++r) {
    if (p.lses[r][row] != kEmpty) sum += std::exp(p.lses[r][row] - top);
  }
  const float lse = sum == 0 ? kEmpty : top + std::log(sum);

  bool first = true;
  for (int r = 0; r < p.partials; ++r) {
    if (p.lses[r][row] == kEmpty) continue;
    const float weight = std::exp(p.lses[r][row] - lse);  // exactly 1 where the others are empty
    const float* part = p.outs[r] + row * p.head_dim;
    if (first) {
      for (int d = 0; d < p.head_dim; ++d) out[d] = weight * part[d];
    } else {
      for (int d = 0; d < p.head_dim; ++d) out[d] += weight * part[d];
    }
    first = false;
  }
  if (first) std::fill_n(out, p.head_dim, 0.0f);
  if (p.lse != nullptr) p.lse[row] = lse;
}

}  // namespace

void merge_partials(const MergeParams& p) {
  TESSERA_CHECK(p.partials >= 0 && p.rows >= 0 && p.head_dim > 0);
  [[maybe_unused]] const bool parallel = p.rows * p.head_dim * p.partials >= kParallelFloats;
#pragma omp parallel for schedule(static) if (parallel)
  for (std::int64_t row = 0; row < p.rows; ++row) merge_row(p, row);
}

}  // namespace tessera
