#include "jobs/plan/plan_sparsity.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "runtime/core/tensor.hpp"

namespace tessera {
namespace {

constexpr double kForcedOffsets = 64;  // 0 … 63, which lie together (DESIGN.md section 4)

}  // namespace

double random_offsets_sparsity(double columns, double diagonals, std::int64_t length) {
  const double tokens = static_cast<double>(length);
  const double keys_a_diagonal = kQueryBlockRows + kPageTokens - 1;
  const double free_diagonals = std::max(0.0, diagonals - kForcedOffsets);
  const double outside_columns = 1 - std::min(1.0, columns / tokens);
  return outside_columns * std::exp(-free_diagonals * keys_a_diagonal / tokens);
}

PhaseSparsity phase_sparsity(const MethodSettings& settings, const PhaseBudget& budget, std::int64_t length) {
  if (!is_sparse(settings.method())) return {0, SparsitySource::kExact};
  if (budget.expected_sparsity) return {*budget.expected_sparsity, SparsitySource::kExact};
  if (budget.pending && budget.target) return {*budget.target, SparsitySource::kTarget};
  if (budget.study_compression) return {1 - 1 / *budget.study_compression, SparsitySource::kStudy};
  if (settings.method().unit == SelectUnit::kColumnsAndDiagonals) {
    const bool by_floor = settings.method().budget == BudgetRule::kThreshold;
    const double columns = static_cast<double>(settings.whole(by_floor ? "floor" : "columns"));
    const double diagonals = static_cast<double>(settings.whole(by_floor ? "floor" : "diagonals"));
    return {random_offsets_sparsity(columns, diagonals, length), SparsitySource::kEstimate};
  }
  return {0, SparsitySource::kUnknown};
}

std::string sparsity_note(const MethodSettings& settings, const PhaseBudget& budget,
                          const PhaseSparsity& sparsity) {
  const Method& method = settings.method();
  switch (sparsity.source) {
    case SparsitySource::kExact:
      return budget.note;
    case SparsitySource::kTarget:
      return fmt::format(
          "{}: calibration solves its budget when eval runs; the target, {}, is taken as reached",
          method.name, sparsity.value);
    case SparsitySource::kStudy:
      return fmt::format("{}: what its budget shows depends on the text; the study aimed at {:.3f}",
                         method.name, sparsity.value);
    case SparsitySource::kEstimate:
      return fmt::format(
          "{}: what its budget shows depends on the text; {:.3f} is for {} at random offsets", method.name,
          sparsity.value,
          method.budget == BudgetRule::kThreshold ? "its floor of diagonals" : "its diagonals");
    case SparsitySource::kUnknown:
      return fmt::format(
          "{}: what it shows depends on the text; it is planned as if dense, the most it can be",
          method.name);
  }
  return "";
}

}  // namespace tessera
