// Choosing the highest of a list of scores, and judging somebody else's choice: it must be the oracle's,
// except for units whose fp64 scores lie so near the boundary that fp32 arithmetic may order them otherwise.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

namespace reference {

// The margin: two units may change places if their scores differ by at most 1e-5 of the scale of scores. The
// scale is that of the terms that were summed: the score itself for sums of probabilities, Σ|q·k| for dot
// products. Half of it is each unit's slack.
inline constexpr double kMargin = 1e-5;

struct Scores {
  std::vector<double> value;
  std::vector<double> slack;  // how far from value the score of an honest fp32 implementation may be

  std::size_t size() const { return value.size(); }
  void add(double v, double s) {
    value.push_back(v);
    slack.push_back(s);
  }
};

// How many to choose. A threshold leaves a range where the coverage passes so near it that rounding decides.
struct Count {
  std::size_t least, want, most;
};
inline Count exactly(std::size_t n) {
  return {n, n, n};
}

struct Verdict {
  bool right = true;
  bool by_margin = false;
  std::string fault;
};

inline Verdict fault(std::string what) {
  return {false, false, std::move(what)};
}

// How often the margin was needed.
struct Tally {
  int choices = 0;
  int by_margin = 0;

  void count(const Verdict& verdict) {
    ++choices;
    by_margin += verdict.by_margin;
  }
};

// Units in the order in which a budget takes them: forced, then by score, ties to the lower index.
inline std::vector<std::int32_t> ranking(const Scores& scores, const std::vector<char>& forced) {
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    if (forced[a] != forced[b]) return forced[a] > forced[b];
    if (!forced[a] && scores.value[a] != scores.value[b]) return scores.value[a] > scores.value[b];
    return a < b;
  });
  return order;
}

// Forced units count inside the budget but are never dropped; a budget beyond what exists takes everything.
inline std::size_t clipped(std::size_t budget, const std::vector<char>& forced) {
  const auto must = static_cast<std::size_t>(std::count(forced.begin(), forced.end(), 1));
  return std::min(forced.size(), std::max(budget, must));
}

// The oracle's choice, ascending.
inline std::vector<std::int32_t> choose(const Scores& scores, const std::vector<char>& forced,
                                        std::size_t budget) {
  std::vector<std::int32_t> kept = ranking(scores, forced);
  kept.resize(clipped(budget, forced));
  std::sort(kept.begin(), kept.end());
  return kept;
}

inline bool ascending_below(const std::vector<std::int32_t>& values, std::size_t limit) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (values[i] < 0 || static_cast<std::size_t>(values[i]) >= limit) return false;
    if (i > 0 && values[i] <= values[i - 1]) return false;
  }
  return true;
}

inline std::string describe_difference(const Scores& scores, const std::vector<std::int32_t>& want,
                                       const std::vector<std::int32_t>& got) {
  std::string text = "want " + std::to_string(want.size()) + " units, got " + std::to_string(got.size());
  const auto list = [&](const char* name, const std::vector<std::int32_t>& a,
                        const std::vector<std::int32_t>& b) {
    std::vector<std::int32_t> only;
    std::set_difference(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(only));
    text += std::string("; only ") + name + ":";
    for (std::size_t i = 0; i < only.size() && i < 6; ++i) {
      text.append(" ").append(std::to_string(only[i]));
      text.append(" (").append(std::to_string(scores.value[only[i]])).append(")");
    }
  };
  list("oracle's", want, got);
  list("production's", got, want);
  return text;
}

// The lowest score that the chosen units that are not forced may have, and the highest that the others must
// have.
struct Border {
  double chosen = std::numeric_limits<double>::infinity();
  double left = -std::numeric_limits<double>::infinity();
};
inline Border border_of(const Scores& scores, const std::vector<char>& forced,
                        const std::vector<std::int32_t>& got) {
  Border border;
  std::vector<char> in(scores.size(), 0);
  for (std::int32_t unit : got) in[unit] = 1;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (in[i] && !forced[i]) border.chosen = std::min(border.chosen, scores.value[i] + scores.slack[i]);
    if (!in[i]) border.left = std::max(border.left, scores.value[i] - scores.slack[i]);
  }
  return border;
}

inline Verdict judge(const Scores& scores, const std::vector<char>& forced, Count budget,
                     const std::vector<std::int32_t>& got) {
  if (!ascending_below(got, scores.size())) return fault("not ascending, or out of range");
  const std::vector<std::int32_t> want = choose(scores, forced, budget.want);
  if (got == want) return {};
  const std::string difference = describe_difference(scores, want, got);
  if (got.size() < clipped(budget.least, forced) || got.size() > clipped(budget.most, forced)) {
    return fault("wrong count: " + difference);
  }
  for (std::size_t i = 0; i < forced.size(); ++i) {
    if (forced[i] && !std::binary_search(got.begin(), got.end(), static_cast<std::int32_t>(i))) {
      return fault("forced unit missing: " + difference);
    }
  }
  const Border border = border_of(scores, forced, got);
  if (border.chosen < border.left) return fault("beyond the margin: " + difference);
  return {true, true, difference};
}

// For inputs whose scores tie by construction: what is equal in real numbers differs here in the last bits of
// fp64. Makes scores that differ by less than 1e-12 of the largest equal and takes the slack away, so that
// judge asks for the oracle's very choice. Lists that compete for one budget go in together.
inline void snap_ties(const std::vector<Scores*>& lists) {
  std::vector<double*> values;
  double largest = 0;
  for (Scores* list : lists) {
    std::fill(list->slack.begin(), list->slack.end(), 0.0);
    for (double& v : list->value) {
      values.push_back(&v);
      largest = std::max(largest, std::fabs(v));
    }
  }
  std::sort(values.begin(), values.end(), [](const double* a, const double* b) { return *a < *b; });
  for (std::size_t i = 1; i < values.size(); ++i) {
    if (*values[i] - *values[i - 1] <= 1e-12 * largest) *values[i] = *values[i - 1];
  }
}

// After snap_ties: scores other than the boundary's own are far enough from it that fp32 must tell them
// apart. Where they are not, the case proves nothing about ties.
inline bool border_is_clear(const Scores& scores, const std::vector<char>& forced, std::size_t budget) {
  const std::size_t n = clipped(budget, forced);
  if (n == 0 || n == scores.size()) return true;
  const std::int32_t last = ranking(scores, forced)[n - 1];
  if (forced[last]) return true;
  const double border = scores.value[last];
  return std::all_of(scores.value.begin(), scores.value.end(), [&](double v) {
    return v == border || std::fabs(v - border) > 2 * kMargin * std::fabs(border);
  });
}

// The budget leaves something to choose.
inline bool is_open(const std::vector<char>& forced, std::size_t budget) {
  const std::size_t n = clipped(budget, forced);
  return n > clipped(0, forced) && n < forced.size();
}

// The last unit taken and the first one left have the same score.
inline bool border_is_tied(const Scores& scores, const std::vector<char>& forced, std::size_t budget) {
  if (!is_open(forced, budget)) return false;
  const std::vector<std::int32_t> order = ranking(scores, forced);
  const std::size_t n = clipped(budget, forced);
  return scores.value[order[n - 1]] == scores.value[order[n]];
}

}  // namespace reference
