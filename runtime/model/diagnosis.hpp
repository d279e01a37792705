// How a selection did against dense attention of the same queries (--diagnose), from outputs and log-sum-exps
// alone:
//   kept mass of a row = exp(lse_selected − lse_dense)     the share of the dense softmax on the keys that
//   were seen error of a head    = ‖out − dense out‖ / ‖dense out‖    over its rows (Frobenius)
#pragma once

#include <cstdint>

#include "runtime/core/operation.hpp"
#include "runtime/model/completion.hpp"

namespace tessera {

struct DiagnosisShape {
  int layers = 0;    // L
  int heads = 0;     // H of this rank
  int head_dim = 0;  // D
};

struct AttendedRows {
  const float* out = nullptr;  // (T, H, D)
  const float* lse = nullptr;  // (T, H)
};

// Adds `rows` rows of one layer to the sums, which are made of the shape when they are empty.
void add_diagnosis(DiagnosisSums& sums, const DiagnosisShape& shape, Phase phase, int layer,
                   std::int64_t rows, const AttendedRows& selected, const AttendedRows& dense);

// What rows of one head add to each of the sums.
struct HeadDiagnosis {
  double kept_mass = 0;
  double error = 0;
  double norm = 0;
  double rows = 0;
};
void add_diagnosis_sums(DiagnosisSums& sums, const DiagnosisShape& shape, Phase phase, int layer, int head,
                        const HeadDiagnosis& part);

}  // namespace tessera
