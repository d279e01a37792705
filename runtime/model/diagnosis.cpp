#include "runtime/model/diagnosis.hpp"

#include <cmath>

namespace tessera {
namespace {

// Of head 0 of the layer.
std::size_t first_of(const DiagnosisShape& shape, Phase phase, int layer) {
  return (static_cast<std::size_t>(phase) * static_cast<std::size_t>(shape.layers) +
          static_cast<std::size_t>(layer)) *
         static_cast<std::size_t>(shape.heads);
}

void make_sums(DiagnosisSums& sums, const DiagnosisShape& shape) {
  if (!sums.rows.empty()) return;
  const auto size = static_cast<std::size_t>(kPhases * shape.layers * shape.heads);
  for (auto* values : {&sums.kept_mass, &sums.error, &sums.norm, &sums.rows}) values->assign(size, 0.0);
}

}  // namespace

void add_diagnosis_sums(DiagnosisSums& sums, const DiagnosisShape& shape, Phase phase, int layer, int head,
                        const HeadDiagnosis& part) {
  make_sums(sums, shape);
  const std::size_t at = first_of(shape, phase, layer) + static_cast<std::size_t>(head);
  sums.kept_mass[at] += part.kept_mass;
  sums.error[at] += part.error;
  sums.norm[at] += part.norm;
  sums.rows[at] += part.rows;
}

void add_diagnosis(DiagnosisSums& sums, const DiagnosisShape& shape, Phase phase, int layer,
                   std::int64_t rows, const AttendedRows& selected, const AttendedRows& dense) {
  const auto heads = static_cast<std::size_t>(shape.heads);
  make_sums(sums, shape);
  const std::size_t first = first_of(shape, phase, layer);
#pragma omp parallel for schedule(static)
  for (std::size_t head = 0; head < heads; ++head) {
    double mass = 0, error = 0, norm = 0;
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::size_t at = static_cast<std::size_t>(row) * heads + head;
      mass += std::exp(static_cast<double>(selected.lse[at]) - static_cast<double>(dense.lse[at]));
      for (int d = 0; d < shape.head_dim; ++d) {
        const std::size_t i = at * static_cast<std::size_t>(shape.head_dim) + static_cast<std::size_t>(d);
        const double x = selected.out[i], y = dense.out[i];
        error += (x - y) * (x - y);
        norm += y * y;
      }
    }
    sums.kept_mass[first + head] += mass;
    sums.error[first + head] += error;
    sums.norm[first + head] += norm;
    sums.rows[first + head] += static_cast<double>(rows);
  }
}

}  // namespace tessera
