// What a finished run says about a task in one line: the mean score and how sure it is.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>

namespace tessera {

// A mean of scores in [0, 1] with a two-sided 95 % interval. Scores that are all 0 or 1 are counts: Wilson's
// score interval (Wilson 1927), which is honest at 0 and 1. Partial credit: Student's t, clipped to [0, 1].
// Equal scores show no spread for t to use: Wilson's again, which is never too narrow, because no scores in
// [0, 1] of a given mean spread wider than zeros and ones. NaN bounds for one score of the second kind; NaN
// mean without scores.
struct MeanInterval {
  std::int64_t count = 0;
  double mean = 0;
  double low = 0;
  double high = 0;
  std::string_view method;  // "Wilson", "Student's t", "" where there is no interval
};
MeanInterval mean_interval(std::span<const double> scores);

// A mean of differences between scores of the same samples, by Student's t, clipped to [-1, 1]. NaN bounds
// for one difference, and for equal ones, which show no spread for t to use.
MeanInterval difference_interval(std::span<const double> differences);

// The quantile t of Student's distribution with P(|T| <= t) = 0.95; degrees >= 1.
double student_t_95(std::int64_t degrees);

// Of the values that are not NaN; NaN where there are none.
double mean_of_known(std::span<const double> values);

struct TaskSummary {
  std::string task;
  std::string metric;
  std::int64_t length = 0;
  std::int64_t format_errors = 0;  // predictions without the wanted form
  std::int64_t failed = 0;         // samples that ended in an error and have no score
  double seconds = 0;              // of this run; 0: not known
  // As measured, means over samples. NaN: the method is dense, or nothing was measured.
  double prefill_sparsity = std::numeric_limits<double>::quiet_NaN();
  double decode_sparsity = std::numeric_limits<double>::quiet_NaN();
};
// "ruler_niah 4096: recall 0.925 [0.871, 0.979] (95 %, Student's t), 20 samples, 1 without the answer's form"
std::string summary_line(const TaskSummary& task, const MeanInterval& interval);

// "45 s", "4 min 05 s", "2 h 03 min"
std::string duration_text(double seconds);

}  // namespace tessera
