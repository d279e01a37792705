// `tessera report`: what the points of one or more runs scored, what their attention saved, and what that
// cost beside dense attention.
#pragma once

#include <cstdio>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "io/trace_schema.hpp"
#include "jobs/options.hpp"
#include "jobs/summary.hpp"

namespace tessera {

// A run to report on; what it refers to must stay while rows are made.
struct ReportSource {
  std::string path;
  const TraceTables* tables = nullptr;
  LoadSample load;
};

// One point. NaN: not known.
struct ReportRow {
  std::string path;        // of the trace
  std::int64_t point = 0;  // in it
  PointInfo info;
  // Methods with their native budgets, "vertical_slash columns=512 diagonals=512": the parameters that say
  // how much is kept, and others where they are not as usual.
  std::string prefill, decode;
  std::string dense_layers;  // "0,1", those that the run was told to leave dense
  bool share_group = false;  // --share-group

  std::int64_t samples = 0;
  std::int64_t failed = 0;         // of them: ended in an error and have no score
  std::int64_t format_errors = 0;  // predictions without the wanted form
  std::string metric;
  MeanInterval score;
  // From the dense point of the same model, task, length and seed, over the samples that both have.
  MeanInterval change;

  // Means over the samples where they are known.
  double prefill_sparsity = kMissing, decode_sparsity = kMissing;
  double prefill_s = kMissing, tpot_s = kMissing;
  // Bytes over samples, layers and ranks as shares of what an all-gather would fetch, where sp > 1: received,
  // seen by the rows of a rank, and spent on agreeing on the selection.
  double selected_share = kMissing, needed_share = kMissing, selecting_share = kMissing;
};

// Points of the same task and length stand together, then those of one model: dense first, then by method,
// then by rising sparsity. InputError names the file and the field.
std::vector<ReportRow> report_rows(std::span<const ReportSource> sources);

// Prints to `out`; returns the exit code or throws an Error.
int run_report(const ReportOptions& options, std::FILE* out);

}  // namespace tessera
