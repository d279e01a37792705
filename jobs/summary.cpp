#include "jobs/summary.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "runtime/core/error.hpp"

namespace tessera {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
constexpr double kNormal975 = 1.959963984540054;  // the 0.975 quantile of the normal distribution

// P(|T| <= t) for whole degrees of freedom: finite sums in θ = atan(t/√ν), Abramowitz and Stegun 26.7.3
// and 26.7.4.
double student_coverage(double t, std::int64_t degrees) {
  const double theta = std::atan(t / std::sqrt(static_cast<double>(degrees)));
  const double cos2 = std::cos(theta) * std::cos(theta);
  if (degrees % 2 == 0) {
    double term = 1, sum = 1;
    for (std::int64_t k = 2; k < degrees; k += 2) {
      term *= cos2 * static_cast<double>(k - 1) / static_cast<double>(k);
      sum += term;
    }
    return std::sin(theta) * sum;
  }
  double sum = 0;
  double term = std::cos(theta);
  for (std::int64_t k = 1; k < degrees; k += 2) {
    sum += term;
    term *= cos2 * static_cast<double>(k + 1) / static_cast<double>(k + 2);
  }
  return 2 / std::numbers::pi * (theta + std::sin(theta) * sum);
}

MeanInterval wilson(double mean, std::int64_t count) {
  const auto n = static_cast<double>(count);
  const double z2 = kNormal975 * kNormal975;
  const double middle = (mean + z2 / (2 * n)) / (1 + z2 / n);
  const double half = kNormal975 / (1 + z2 / n) * std::sqrt(mean * (1 - mean) / n + z2 / (4 * n * n));
  return {count, mean, std::max(0.0, middle - half), std::min(1.0, middle + half), "Wilson"};
}

double mean_of(std::span<const double> values) {
  double sum = 0;
  for (double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double sum_of_squares(std::span<const double> values, double mean) {
  double squares = 0;
  for (double value : values) squares += (value - mean) * (value - mean);
  return squares;
}

// Of at least two values that spread, clipped to what a mean can be.
MeanInterval student(std::int64_t count, double mean, double squares, double least, double most) {
  const double error = std::sqrt(squares / static_cast<double>(count - 1) / static_cast<double>(count));
  const double half = student_t_95(count - 1) * error;
  return {count, mean, std::max(least, mean - half), std::min(most, mean + half), "Student's t"};
}

}  // namespace

double student_t_95(std::int64_t degrees) {
  TESSERA_CHECK(degrees >= 1);
  if (degrees > 1000) {  // Abramowitz and Stegun 26.7.5, first two terms: good to 1e-9 here
    const double x = kNormal975;
    const auto nu = static_cast<double>(degrees);
    return x + (x * x * x + x) / (4 * nu) + (5 * std::pow(x, 5) + 16 * x * x * x + 3 * x) / (96 * nu * nu);
  }
  double low = 1.9, high = 12.8;  // degrees without end, and 1
  for (int step = 0; step < 60; ++step) {
    const double middle = 0.5 * (low + high);
    (student_coverage(middle, degrees) < 0.95 ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

MeanInterval mean_interval(std::span<const double> scores) {
  const auto count = static_cast<std::int64_t>(scores.size());
  if (count == 0) return {0, kUnknown, kUnknown, kUnknown, ""};
  const double mean = mean_of(scores);
  if (std::all_of(scores.begin(), scores.end(), [](double s) { return s == 0 || s == 1; })) {
    return wilson(mean, count);
  }
  if (count < 2) return {count, mean, kUnknown, kUnknown, ""};
  const double squares = sum_of_squares(scores, mean);
  if (squares == 0) return wilson(mean, count);
  return student(count, mean, squares, 0, 1);
}

MeanInterval difference_interval(std::span<const double> differences) {
  const auto count = static_cast<std::int64_t>(differences.size());
  if (count == 0) return {0, kUnknown, kUnknown, kUnknown, ""};
  const double mean = mean_of(differences);
  const auto [least, most] = std::minmax_element(differences.begin(), differences.end());
  constexpr double kRounding = 1e-12;  // of differences of scores
  if (*most - *least < kRounding) return {count, mean, kUnknown, kUnknown, ""};
  return student(count, mean, sum_of_squares(differences, mean), -1, 1);
}

double mean_of_known(std::span<const double> values) {
  double sum = 0;
  std::int64_t count = 0;
  for (const double value : values) {
    if (std::isnan(value)) continue;
    sum += value;
    ++count;
  }
  return count > 0 ? sum / static_cast<double>(count) : kUnknown;
}

std::string summary_line(const TaskSummary& task, const MeanInterval& interval) {
  std::string line = fmt::format("{} {}: ", task.task, task.length);
  if (interval.count == 0) {
    line += "no scores";
  } else {
    line += fmt::format("{} {:.3f}", task.metric, interval.mean);
    if (!interval.method.empty()) {
      line += fmt::format(" [{:.3f}, {:.3f}] (95 %, {})", interval.low, interval.high, interval.method);
    }
    line += fmt::format(", {} sample{}", interval.count, interval.count == 1 ? "" : "s");
  }
  if (!std::isnan(task.prefill_sparsity))
    line += fmt::format(", prefill sparsity {:.3f}", task.prefill_sparsity);
  if (!std::isnan(task.decode_sparsity))
    line += fmt::format(", decode sparsity {:.3f}", task.decode_sparsity);
  if (task.format_errors > 0) line += fmt::format(", {} without the answer's form", task.format_errors);
  if (task.failed > 0) line += fmt::format(", {} failed", task.failed);
  if (task.seconds > 0) line += ", " + duration_text(task.seconds);
  return line;
}

std::string duration_text(double seconds) {
  if (!(seconds >= 0) || seconds > 1e12) return "?";
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  if (whole < 48 * 3600) return fmt::format("{} h {:02} min", whole / 3600, whole % 3600 / 60);
  return fmt::format("{} d {:02} h", whole / 86400, whole % 86400 / 3600);
}

}  // namespace tessera
