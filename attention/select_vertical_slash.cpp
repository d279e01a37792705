// vertical_slash (Jiang et al. 2024, MInference) and flexprefill (Lai et al. 2025): columns and diagonals by
// the softmax of the last queries.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "attention/select_families.hpp"
#include "attention/selection_builder.hpp"
#include "attention/top_units.hpp"
#include "attention/window_scores.hpp"

namespace tessera {
namespace {

constexpr std::int64_t kForcedColumns = 4;
constexpr std::int64_t kForcedDiagonals = 64;
constexpr Fixed kForced = std::numeric_limits<Fixed>::max();

// 1 + the number of sorted scores whose running sum is at most alpha of `whole`, which is what they add up to
// but for rounding; alpha 1 takes all, whatever rounding says. Forced units count by their own scores here.
std::int64_t units_to_cover(std::span<const Fixed> scores, double alpha, double whole) {
  const std::int64_t most = static_cast<std::int64_t>(scores.size());
  if (alpha >= 1) return most;
  std::vector<Fixed> sorted(scores.begin(), scores.end());
  const double limit = alpha * whole;
  // Sorted piece by piece from the top: the sum is reached early as a rule.
  auto begin = sorted.begin();
  Fixed sum = 0;
  std::int64_t units = 1;
  for (std::ptrdiff_t piece = 256; begin != sorted.end(); piece *= 4) {
    const auto end = begin + std::min<std::ptrdiff_t>(piece, sorted.end() - begin);
    if (end != sorted.end()) std::nth_element(begin, end, sorted.end(), std::greater<Fixed>());
    std::sort(begin, end, std::greater<Fixed>());
    for (; begin != end; ++begin) {
      sum += *begin;
      if (static_cast<double>(sum) > limit) return std::min(units, most);
      ++units;
    }
  }
  return std::min(units, most);
}

// From the sums of one list to its units; a budget below the forced ones keeps them all the same. scores are
// overwritten.
std::vector<std::int32_t> choose(std::span<Fixed> scores, std::int64_t budget, std::int64_t forced) {
  std::fill_n(scores.begin(), std::min<std::int64_t>(forced, static_cast<std::int64_t>(scores.size())),
              kForced);
  return top_units<Fixed>(scores, std::max(budget, forced));
}

}  // namespace

PrefillChoice select_columns_and_diagonals(const SelectInput& input, const MethodSettings& settings) {
  const HeadGroups groups(input);
  const std::int64_t length = input.tokens;
  const std::int64_t window = std::min(settings.whole("window"), length);
  const std::size_t size = static_cast<std::size_t>(length);

  WindowProblem problem;
  problem.heads = input.heads;
  problem.kv_heads = input.kv_heads;
  problem.head_dim = input.head_dim;
  problem.rows = window;
  problem.first_position = length - window;
  problem.q = input.query(length - window, 0);
  problem.keys = length;
  problem.k = input.k;
  problem.scale = input.scale;
  std::vector<Fixed> columns(static_cast<std::size_t>(input.heads) * size);
  std::vector<Fixed> diagonals(columns.size());
  WindowSums sums;
  sums.columns = columns.data();
  sums.diagonals = diagonals.data();
  window_sums(problem, sums);

  const bool threshold = settings.method().budget == BudgetRule::kThreshold;
  const double alpha = threshold ? settings.real("alpha") : 0;
  const std::int64_t floor = threshold ? settings.whole("floor") : 0;
  PrefillChoice choice;
  choice.native.columns.resize(static_cast<std::size_t>(groups.lists));
  choice.native.diagonals.resize(static_cast<std::size_t>(groups.lists));
  // Lists of columns and of diagonals alike: the scores of the group's heads are summed into those of its
  // first head.
  const auto list_scores = [&](std::vector<Fixed>& scores, int list) {
    Fixed* first = scores.data() + static_cast<std::size_t>(list * groups.size) * size;
    for (int g = 1; g < groups.size; ++g) {
      for (std::size_t i = 0; i < size; ++i) first[i] += first[static_cast<std::size_t>(g) * size + i];
    }
    return std::span<Fixed>(first, size);
  };
  const auto budget_of = [&](std::string_view name, std::span<const Fixed> scores) {
    if (!threshold) return settings.whole(name);
    const double whole = std::ldexp(static_cast<double>(window * groups.size), kFixedFractionBits);
    return std::max(floor, units_to_cover(scores, alpha, whole));
  };
#pragma omp parallel for schedule(dynamic, 1)
  for (int i = 0; i < 2 * groups.lists; ++i) {
    const std::size_t list = static_cast<std::size_t>(i / 2);
    if (i % 2 == 0) {
      const std::span<Fixed> scores = list_scores(columns, i / 2);
      choice.native.columns[list] = choose(scores, budget_of("columns", scores), kForcedColumns);
    } else {
      const std::span<Fixed> scores = list_scores(diagonals, i / 2);
      choice.native.diagonals[list] = choose(scores, budget_of("diagonals", scores), kForcedDiagonals);
    }
  }
  choice.selection =
      select_diagonals(length, input.share_group, choice.native.columns, choice.native.diagonals);
  return choice;
}

}  // namespace tessera
