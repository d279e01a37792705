// vertical_slash and flexprefill on the GPU, from the sums of window_sums_cuda.hpp to lists: the columns and
// the diagonals with the highest sums, exactly, ties to the lower index, forced ones first
// (attention/select_vertical_slash.cpp); then for each query block of 64 the pages that the diagonals cover,
// in compressed rows as PrefillLists takes them, as select_diagonals in selection_builder.hpp makes them.
// Nothing is read back: how many columns and diagonals there are is known beforehand, how many entries up to
// a bound. All pointers are of the device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/fixed_point.hpp"
#include "attention/selection.hpp"
#include "runtime/core/device.hpp"

namespace tessera::cuda {

struct SlashSelectProblem {
  static constexpr std::int64_t kForcedColumns = 4;     // the first tokens
  static constexpr std::int64_t kForcedDiagonals = 64;  // the nearest offsets

  std::int64_t tokens = 0;   // S, at most 2^22
  int lists = 0;             // of heads, or of KV heads where the group shares
  std::int64_t columns = 0;  // budgets; forced ones count inside, and are kept in any case
  std::int64_t diagonals = 0;
  // Not negative: at least the budget, and 1 + as many of the highest sums of a list as stay within this
  // together.
  Fixed coverage = -1;

  // Of each list; with a coverage at most. No references to the constants: these run on the device too.
  constexpr std::int64_t kept_columns() const { return kept(columns, kForcedColumns); }
  constexpr std::int64_t kept_diagonals() const { return kept(diagonals, kForcedDiagonals); }
  constexpr std::int64_t query_blocks() const { return (tokens + kQueryBlockRows - 1) / kQueryBlockRows; }

  constexpr std::int64_t kept(std::int64_t budget, std::int64_t forced) const {
    const std::int64_t least = budget > forced ? budget : forced;
    return least < tokens && coverage < 0 ? least : tokens;
  }
};

// What the share `alpha` < 1 of all that the lists' heads add up to is as a coverage: rows of the window,
// heads a list.
inline Fixed coverage_of(double alpha, std::int64_t rows, int heads_a_list) {
  return static_cast<Fixed>(alpha * static_cast<double>((rows * heads_a_list) << kFixedFractionBits));
}

// At most so many, of all lists together.
std::int64_t slash_list_entries(const SlashSelectProblem& problem);

struct SlashSelectParams {
  SlashSelectProblem problem;
  const Fixed* column_sums = nullptr;    // (lists, S), none below 0
  const Fixed* diagonal_sums = nullptr;  // (lists, S)
  void* workspace = nullptr;             // slash_select_workspace bytes, aligned to 16
  std::int32_t* columns = nullptr;       // (lists, kept_columns) ascending positions
  std::int32_t* diagonals = nullptr;     // (lists, kept_diagonals) ascending offsets
  std::int32_t* counts = nullptr;        // (2, lists): columns kept, diagonals kept
  std::int64_t* row_begin = nullptr;     // (lists · query_blocks + 1) into entries
  BlockEntry* entries = nullptr;         // (slash_list_entries)
  StreamView stream;
};

std::size_t slash_select_workspace(const SlashSelectProblem& problem);

void select_slashes_on_device(const SlashSelectParams& p);

}  // namespace tessera::cuda
