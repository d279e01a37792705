// The importance scores of every sparse method in fp64, by their definitions over plain arrays.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "tests/reference/naive_choice.hpp"

namespace reference {

enum class Rounding { kNone, kBF16, kF16 };

struct SelectProblem {
  std::size_t tokens = 0;    // S
  std::size_t heads = 0;     // H
  std::size_t kv_heads = 0;  // K
  std::size_t dim = 0;       // D
  std::vector<float> q;      // (S, H, D)
  std::vector<float> k;      // (S, K, D)
  double scale = 0;
  Rounding model = Rounding::kNone;
  bool share = false;

  std::size_t group() const { return heads / kv_heads; }
  std::size_t lists() const { return share ? kv_heads : heads; }
  // Query heads whose importance list `list` sums.
  std::size_t first_head(std::size_t list) const { return share ? list * group() : list; }
  std::size_t heads_a_list() const { return share ? group() : 1; }
  double q_at(std::size_t token, std::size_t head, std::size_t d) const {
    return q[(token * heads + head) * dim + d];
  }
  double k_at(std::size_t token, std::size_t kv_head, std::size_t d) const {
    return k[(token * kv_heads + kv_head) * dim + d];
  }
};

// To nearest even with that many significant bits; below the least normal exponent the step stays.
inline double rounded(double value, Rounding to) {
  if (to == Rounding::kNone || value == 0) return value;
  const int significant = to == Rounding::kBF16 ? 8 : 11;
  const int least_exponent = to == Rounding::kBF16 ? -126 : -14;
  const int exponent = std::max(std::ilogb(value), least_exponent);
  const double step = std::ldexp(1.0, exponent - significant + 1);
  return std::nearbyint(value / step) * step;
}

// softmax(scale · q Kᵀ), causal, of the last rows of one query head.
struct WindowSoftmax {
  std::size_t rows = 0;       // min(window, S); row i is query S − rows + i
  std::vector<double> value;  // (rows, S); 0 past the diagonal
  std::vector<double> slack;
};

inline WindowSoftmax window_softmax(const SelectProblem& p, std::size_t head, std::size_t window,
                                    Rounding rounding) {
  WindowSoftmax out;
  out.rows = std::min(window, p.tokens);
  out.value.assign(out.rows * p.tokens, 0.0);
  out.slack.assign(out.rows * p.tokens, 0.0);
  for (std::size_t i = 0; i < out.rows; ++i) {
    const std::size_t position = p.tokens - out.rows + i;
    double* row = out.value.data() + i * p.tokens;
    for (std::size_t j = 0; j <= position; ++j) {
      double score = 0;
      for (std::size_t d = 0; d < p.dim; ++d)
        score += p.q_at(position, head, d) * p.k_at(j, head / p.group(), d);
      row[j] = score * p.scale;
    }
    const double largest = *std::max_element(row, row + position + 1);
    double sum = 0;
    for (std::size_t j = 0; j <= position; ++j) sum += row[j] = std::exp(row[j] - largest);
    for (std::size_t j = 0; j <= position; ++j) {
      const double exact = row[j] / sum;
      row[j] = rounded(exact, rounding);
      // An fp32 probability near the middle between two low-precision numbers may round to either.
      const double low = rounded(exact * (1 - kMargin / 2), rounding);
      const double high = rounded(exact * (1 + kMargin / 2), rounding);
      out.slack[i * p.tokens + j] = std::max(high - row[j], row[j] - low);
    }
  }
  return out;
}

// What int64 fixed point with 40 fraction bits rounds away, a term.
inline constexpr double kFixedStep = 0x1p-40;

// Column and diagonal sums of the window softmax, a list: vertical[j] = Σ_i p[i, j] and slash[o] = Σ_i p[i,
// pos_i − o].
struct WindowSums {
  std::vector<Scores> vertical;  // (lists)(S)
  std::vector<Scores> slash;     // (lists)(S)
  std::size_t rows = 0;
};

inline WindowSums window_sums(const SelectProblem& p, std::size_t window) {
  WindowSums sums;
  for (std::size_t list = 0; list < p.lists(); ++list) {
    Scores vertical{std::vector<double>(p.tokens, 0.0), std::vector<double>(p.tokens, kFixedStep)};
    Scores slash = vertical;
    for (std::size_t g = 0; g < p.heads_a_list(); ++g) {
      const WindowSoftmax softmax = window_softmax(p, p.first_head(list) + g, window, Rounding::kNone);
      sums.rows = softmax.rows;
      for (std::size_t i = 0; i < softmax.rows; ++i) {
        const std::size_t position = p.tokens - softmax.rows + i;
        for (std::size_t j = 0; j <= position; ++j) {
          const std::size_t at = i * p.tokens + j;
          vertical.value[j] += softmax.value[at];
          vertical.slack[j] += softmax.slack[at] + kFixedStep;
          slash.value[position - j] += softmax.value[at];
          slash.slack[position - j] += softmax.slack[at] + kFixedStep;
        }
      }
    }
    sums.vertical.push_back(vertical);
    sums.slash.push_back(slash);
  }
  return sums;
}

// How many of the sorted means a coverage takes: 1 + the number of running sums that are ≤ alpha, at least
// `floor`. `total` is what the scores sum to: they are divided by it.
inline Count coverage_count(const Scores& scores, double total, double alpha, std::size_t floor) {
  std::vector<double> sorted = scores.value;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  const auto count = [&](double limit) {
    std::size_t n = 1;
    double running = 0;
    for (double value : sorted) {
      running += value / total;
      n += running <= limit;
    }
    return std::max(floor, n);
  };
  // The running sum of 1,000 probabilities in fp32 may be off by its own relative error.
  const double slack = kMargin / 2;
  return {count(alpha - slack), count(alpha), count(alpha + slack)};
}

// Mean-pooled Q · K of blocks, a list: scores of KV blocks 0 … b for query block b. No scale, no softmax.
inline std::vector<std::vector<Scores>> pooled_block_scores(const SelectProblem& p, std::size_t edge) {
  const std::size_t blocks = (p.tokens + edge - 1) / edge;
  const auto mean = [&](std::size_t block, auto at) {
    const std::size_t end = std::min(p.tokens, (block + 1) * edge);
    double sum = 0;
    for (std::size_t t = block * edge; t < end; ++t) sum += at(t);
    return sum / static_cast<double>(end - block * edge);
  };
  std::vector<double> mean_q(blocks * p.heads * p.dim), mean_k(blocks * p.kv_heads * p.dim);
  for (std::size_t b = 0; b < blocks; ++b) {
    for (std::size_t d = 0; d < p.dim; ++d) {
      for (std::size_t h = 0; h < p.heads; ++h) {
        mean_q[(b * p.heads + h) * p.dim + d] = mean(b, [&](std::size_t t) { return p.q_at(t, h, d); });
      }
      for (std::size_t h = 0; h < p.kv_heads; ++h) {
        mean_k[(b * p.kv_heads + h) * p.dim + d] = mean(b, [&](std::size_t t) { return p.k_at(t, h, d); });
      }
    }
  }
  std::vector<std::vector<Scores>> all(p.lists());
  for (std::size_t list = 0; list < p.lists(); ++list) {
    for (std::size_t row = 0; row < blocks; ++row) {
      Scores scores;
      for (std::size_t b = 0; b <= row; ++b) {
        double score = 0, terms = 0;
        for (std::size_t g = 0; g < p.heads_a_list(); ++g) {
          const std::size_t h = p.first_head(list) + g;
          for (std::size_t d = 0; d < p.dim; ++d) {
            const double term = mean_q[(row * p.heads + h) * p.dim + d] *
                                mean_k[(b * p.kv_heads + h / p.group()) * p.dim + d];
            score += term;
            terms += std::fabs(term);
          }
        }
        scores.add(score, terms * kMargin / 2);
      }
      all[list].push_back(scores);
    }
  }
  return all;
}

enum class OverGroup { kMean, kMax };

// snapkv and its kin, a KV head: window softmax rounded to the model's dtype, mean over the group and sum
// over the window (ada: the maximum over both), then the average of 21 neighbours with zeros beyond the ends.
inline std::vector<Scores> pooled_token_scores(const SelectProblem& p, std::size_t window, std::size_t pool,
                                               OverGroup over) {
  std::vector<Scores> all;
  for (std::size_t kv_head = 0; kv_head < p.kv_heads; ++kv_head) {
    std::vector<double> value(p.tokens, 0.0), low(p.tokens, 0.0), high(p.tokens, 0.0);
    for (std::size_t g = 0; g < p.group(); ++g) {
      const WindowSoftmax softmax = window_softmax(p, kv_head * p.group() + g, window, p.model);
      for (std::size_t i = 0; i < softmax.rows; ++i) {
        for (std::size_t j = 0; j < p.tokens; ++j) {
          const double at = softmax.value[i * p.tokens + j];
          const double slack = softmax.slack[i * p.tokens + j] + (at > 0 ? kFixedStep : 0.0);
          if (over == OverGroup::kMax) {
            value[j] = std::max(value[j], at);
            low[j] = std::max(low[j], at - slack);
            high[j] = std::max(high[j], at + slack);
          } else {
            const double share = 1.0 / static_cast<double>(p.group());
            value[j] += at * share;
            low[j] += (at - slack) * share;
            high[j] += (at + slack) * share;
          }
        }
      }
    }
    Scores scores;
    const auto half = static_cast<std::ptrdiff_t>(pool / 2);
    for (std::ptrdiff_t j = 0; j < static_cast<std::ptrdiff_t>(p.tokens); ++j) {
      double sum = 0, slack = kFixedStep;
      for (std::ptrdiff_t n = j - half; n <= j + half; ++n) {
        if (n < 0 || n >= static_cast<std::ptrdiff_t>(p.tokens)) continue;
        sum += value[n];
        slack += std::max(high[n] - value[n], value[n] - low[n]) + kFixedStep;
      }
      const double divisor = static_cast<double>(pool);
      scores.add(sum / divisor, slack / divisor + 1e-7 * sum / divisor);
    }
    all.push_back(scores);
  }
  return all;
}

// The bound of a query on the keys of each page of 16: Σ_d max(q_d · min_d, q_d · max_d), summed over the
// group unless each query head chooses for itself. q: (H, D). Pages begin full; the unfinished last one is
// not scored.
inline std::vector<Scores> page_bound_scores(const SelectProblem& p, const std::vector<float>& q,
                                             bool per_query_head) {
  const std::size_t pages = p.tokens / 16;
  std::vector<Scores> all;
  for (std::size_t list = 0; list < (per_query_head ? p.heads : p.kv_heads); ++list) {
    Scores scores;
    for (std::size_t page = 0; page < pages; ++page) {
      double score = 0, terms = 0;
      for (std::size_t g = 0; g < (per_query_head ? 1 : p.group()); ++g) {
        const std::size_t head = per_query_head ? list : list * p.group() + g;
        for (std::size_t d = 0; d < p.dim; ++d) {
          double least = p.k_at(page * 16, head / p.group(), d), most = least;
          for (std::size_t t = page * 16; t < page * 16 + 16; ++t) {
            least = std::min(least, p.k_at(t, head / p.group(), d));
            most = std::max(most, p.k_at(t, head / p.group(), d));
          }
          const double x = q[head * p.dim + d];
          score += std::max(x * least, x * most);
          terms += std::max(std::fabs(x * least), std::fabs(x * most));
        }
      }
      scores.add(score, terms * kMargin / 2);
    }
    all.push_back(scores);
  }
  return all;
}

// topp_pages: a softmax over the pages before the current one of scale · bound, a query head, summed over the
// group. The problem's group is the heads of one list. q: (H, D).
inline std::vector<Scores> page_softmax_scores(const SelectProblem& p, const std::vector<float>& q) {
  const std::vector<Scores> bounds = page_bound_scores(p, q, true);
  const std::size_t pages = (p.tokens - 1) / 16;
  std::vector<Scores> all(p.kv_heads,
                          Scores{std::vector<double>(pages, 0.0), std::vector<double>(pages, 0.0)});
  for (std::size_t head = 0; head < p.heads && pages > 0; ++head) {
    const std::vector<double>& bound = bounds[head].value;
    const double largest =
        *std::max_element(bound.begin(), bound.begin() + static_cast<std::ptrdiff_t>(pages));
    double sum = 0;
    for (std::size_t page = 0; page < pages; ++page) sum += std::exp(p.scale * (bound[page] - largest));
    for (std::size_t page = 0; page < pages; ++page) {
      const double share = std::exp(p.scale * (bound[page] - largest)) / sum;
      // A logit of ten or more is itself uncertain by more than its exponential is.
      const double terms = p.scale * bounds[head].slack[page] / (kMargin / 2);
      all[head / p.group()].value[page] += share;
      all[head / p.group()].slack[page] += share * kMargin / 2 * std::max(1.0, terms / 10) + kFixedStep;
    }
  }
  return all;
}

// The fewest units, forced ones first and then in order of score, that hold at least `coverage` of the whole,
// and no fewer than `least`.
inline Count fewest_that_cover(const Scores& scores, const std::vector<char>& forced, double coverage,
                               std::size_t least) {
  std::vector<double> sorted;
  double total = 0, at_first = 0;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    total += scores.value[i];
    if (forced[i]) {
      at_first += scores.value[i];
    } else {
      sorted.push_back(scores.value[i]);
    }
  }
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  const auto count = [&](double share) {
    std::size_t n = 0;
    double running = at_first;
    while (n < sorted.size() && running < share * total) running += sorted[n++];
    return std::max(least, n + scores.size() - sorted.size());
  };
  const double slack = kMargin / 2;
  return {count(coverage - slack), count(coverage), count(coverage + slack)};
}

// xattention (Xu and others, 2025): tokens form groups of `stride`; a query group and a key group no later
// score scale / stride · Σ_u q[stride − 1 − u] · k[u], the antidiagonal of their square, with zeros past the
// end of the prompt; softmax over key groups; a pair of blocks gets the sum over its groups. A list: scores
// of KV blocks 0 … b for query block b.
inline std::vector<std::vector<Scores>> antidiagonal_block_scores(const SelectProblem& p, std::size_t edge,
                                                                  std::size_t stride) {
  const std::size_t groups = (p.tokens + stride - 1) / stride;
  const std::size_t blocks = (p.tokens + edge - 1) / edge;
  std::vector<std::vector<Scores>> all(p.lists());
  for (auto& rows : all) {
    for (std::size_t b = 0; b < blocks; ++b) {
      rows.push_back({std::vector<double>(b + 1, 0.0), std::vector<double>(b + 1, kFixedStep)});
    }
  }
  for (std::size_t head = 0; head < p.heads; ++head) {
    auto& rows = all[p.share ? head / p.group() : head];
    for (std::size_t a = 0; a < groups; ++a) {
      std::vector<double> score(a + 1, 0.0), terms(a + 1, 0.0);
      for (std::size_t b = 0; b <= a; ++b) {
        for (std::size_t u = 0; u < stride; ++u) {
          const std::size_t query = a * stride + stride - 1 - u, key = b * stride + u;
          if (query >= p.tokens || key >= p.tokens) continue;
          for (std::size_t d = 0; d < p.dim; ++d) {
            const double term = p.q_at(query, head, d) * p.k_at(key, head / p.group(), d);
            score[b] += term;
            terms[b] += std::fabs(term);
          }
        }
        score[b] *= p.scale / static_cast<double>(stride);
        terms[b] *= p.scale / static_cast<double>(stride);
      }
      const double largest = *std::max_element(score.begin(), score.end());
      double sum = 0;
      for (double& s : score) sum += s = std::exp(s - largest);
      for (std::size_t b = 0; b <= a; ++b) {
        Scores& row = rows[a * stride / edge];
        const std::size_t block = b * stride / edge;
        row.value[block] += score[b] / sum;
        row.slack[block] += score[b] / sum * kMargin / 2 * std::max(1.0, terms[b] / 10) + kFixedStep;
      }
    }
  }
  return all;
}

}  // namespace reference
