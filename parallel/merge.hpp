// Merging attention partials computed over disjoint sets of keys:
//   lse = log Σ_r exp(lse_r),  out = Σ_r exp(lse_r − lse) · out_r        (natural log, fp32)
// A row that saw no key has lse = −inf and changes nothing; its `out` is not read. All empty: out = 0, lse =
// −inf.
#pragma once

#include <cstdint>

namespace tessera {

struct MergeParams {
  int partials = 0;                    // R
  std::int64_t rows = 0;               // (token, head) pairs
  int head_dim = 0;                    // D
  const float* const* outs = nullptr;  // R pointers to (rows, D)
  const float* const* lses = nullptr;  // R pointers to (rows)
  float* out = nullptr;                // (rows, D); may be outs[0]
  float* lse = nullptr;                // (rows), or null; may be lses[0]
};

// Partials are taken in order, so that ranks that merge the same partials get the same bits.
void merge_partials(const MergeParams& p);

}  // namespace tessera
