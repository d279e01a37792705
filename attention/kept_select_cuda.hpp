// Which tokens the snapkv family keeps, on the GPU, from the sums of window_sums_cuda.hpp: average pooling as
// a sum, then for each KV head the highest, exactly, ties to the lower index and forced tokens first
// (attention/kept_tokens.hpp). With `shared_keep` heads then compete for one budget. All pointers are of the
// device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/fixed_point.hpp"
#include "runtime/core/device.hpp"

namespace tessera::cuda {

struct KeptSelectProblem {
  std::int64_t tokens = 0;       // S, at most 2^22; lists · S below 2^31
  int lists = 0;                 // K
  std::int64_t keep = 0;         // of each list, forced ones included: from forced() to S
  std::int64_t shared_keep = 0;  // 0, or of all lists together, from lists · keep on
  std::int64_t sinks = 0;        // the first tokens and the last are kept in any case
  std::int64_t recent = 0;
  std::int64_t pool = 1;  // odd

  constexpr std::int64_t forced() const { return sinks + recent < tokens ? sinks + recent : tokens; }
  constexpr std::int64_t kept() const { return shared_keep > 0 ? shared_keep : lists * keep; }
};

struct KeptSelectParams {
  KeptSelectProblem problem;
  const Fixed* importance = nullptr;  // (lists, S), none below 0
  void* workspace = nullptr;          // kept_select_workspace bytes, aligned to 16
  // (lists, keep) ascending positions; with shared_keep, (shared_keep) ascending list · S + position.
  std::int32_t* chosen = nullptr;
  StreamView stream;
};

std::size_t kept_select_workspace(const KeptSelectProblem& problem);

void select_kept_on_device(const KeptSelectParams& p);

}  // namespace tessera::cuda
