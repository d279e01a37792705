#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "attention/window_scores.hpp"
#include "runtime/core/random.hpp"

using namespace tessera;

namespace {

std::vector<float> random_values(std::size_t count, std::uint64_t stream) {
  CounterRng rng(29, stream);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(4.0 * rng.uniform() - 2.0);
  return values;
}

double rounded(double p, DType dtype) {
  if (dtype == DType::kBF16) return to_float(to_bfloat16(static_cast<float>(p)));
  if (dtype == DType::kF16) return to_float(to_float16(static_cast<float>(p)));
  return p;
}

struct Naive {
  std::vector<double> columns, maxima, diagonals;
};

// fp64 softmax of the window rows, straight from the definition.
Naive naive_sums(const WindowProblem& p) {
  const std::int64_t length = p.first_position + p.rows;
  Naive sums;
  sums.columns.assign(static_cast<std::size_t>(p.heads * p.keys), 0);
  sums.maxima = sums.columns;
  sums.diagonals.assign(static_cast<std::size_t>(p.heads * length), 0);
  for (int h = 0; h < p.heads; ++h) {
    for (std::int64_t i = 0; i < p.rows; ++i) {
      std::vector<double> scores;
      const std::int64_t position = p.first_position + i;
      for (std::int64_t j = 0; j <= position; ++j) {
        double dot = 0;
        for (int d = 0; d < p.head_dim; ++d) {
          dot += static_cast<double>(p.q[(i * p.heads + h) * p.head_dim + d]) *
                 p.k[(j * p.kv_heads + h / (p.heads / p.kv_heads)) * p.head_dim + d];
        }
        scores.push_back(dot * p.scale);
      }
      double maximum = -std::numeric_limits<double>::infinity();
      for (double s : scores) maximum = std::max(maximum, s);
      double denominator = 0;
      for (double s : scores) denominator += std::exp(s - maximum);
      for (std::int64_t j = 0; j <= position; ++j) {
        const double value =
            rounded(std::exp(scores[static_cast<std::size_t>(j)] - maximum) / denominator, p.round_to);
        double& most = sums.maxima[static_cast<std::size_t>(h * p.keys + j)];
        sums.columns[static_cast<std::size_t>(h * p.keys + j)] += value;
        most = std::max(most, value);
        sums.diagonals[static_cast<std::size_t>(h * length + position - j)] += value;
      }
    }
  }
  return sums;
}

double worst_error(const std::vector<Fixed>& found, const std::vector<double>& wanted) {
  double worst = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i)
    worst = std::max(worst, std::abs(from_fixed(found[i]) - wanted[i]));
  return worst;
}

struct Case {
  std::vector<float> q, k;
  WindowProblem problem;

  Case(std::int64_t length, std::int64_t window, int heads, int kv_heads, int head_dim) {
    problem.heads = heads;
    problem.kv_heads = kv_heads;
    problem.head_dim = head_dim;
    problem.rows = window;
    problem.first_position = length - window;
    problem.keys = length;
    problem.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    q = random_values(static_cast<std::size_t>(window * heads * head_dim), 1);
    k = random_values(static_cast<std::size_t>(length * kv_heads * head_dim), 2);
    problem.q = q.data();
    problem.k = k.data();
  }
};

struct Sums {
  std::vector<Fixed> columns, maxima, diagonals;

  explicit Sums(const WindowProblem& p, std::int64_t keys)
      : columns(static_cast<std::size_t>(p.heads * keys)),
        maxima(columns.size()),
        diagonals(static_cast<std::size_t>(p.heads * (p.first_position + p.rows))) {}
  WindowSums pointers() { return {columns.data(), maxima.data(), diagonals.data()}; }
};

}  // namespace

TEST_CASE("window sums equal an fp64 softmax at irregular sizes") {
  struct Shape {
    std::int64_t length, window;
    int heads, kv_heads, head_dim;
  };
  for (const Shape s :
       {Shape{1, 1, 1, 1, 4}, Shape{7, 7, 2, 1, 3}, Shape{65, 64, 3, 3, 16}, Shape{300, 70, 4, 2, 20},
        Shape{515, 256, 2, 1, 64}, Shape{129, 1, 2, 2, 8}, Shape{128, 128, 1, 1, 64}}) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      CAPTURE(s.length);
      CAPTURE(s.window);
      Case c(s.length, s.window, s.heads, s.kv_heads, s.head_dim);
      c.problem.round_to = dtype;
      Sums sums(c.problem, c.problem.keys);
      window_sums(c.problem, sums.pointers());
      const Naive naive = naive_sums(c.problem);
      // With rounding a probability at the border of two values of the dtype may fall to either side: half a
      // step of 2^-8.
      const double one = dtype == DType::kF32 ? 2e-6 : dtype == DType::kBF16 ? 4e-3 : 5e-4;
      CHECK(worst_error(sums.columns, naive.columns) < one);
      CHECK(worst_error(sums.maxima, naive.maxima) < one);
      CHECK(worst_error(sums.diagonals, naive.diagonals) < one);
    }
  }
}

TEST_CASE("passes over shards of the keys give the bits of one call") {
  Case c(1000, 200, 4, 2, 24);
  Sums whole(c.problem, c.problem.keys);
  window_sums(c.problem, whole.pointers());

  const std::vector<std::int64_t> borders = {0, 1, 130, 130, 640, 900, 1000};
  const std::size_t rows = static_cast<std::size_t>(c.problem.heads * c.problem.rows);
  std::vector<float> maxima(rows, -std::numeric_limits<float>::infinity());
  std::vector<Fixed> denominators(rows);
  Sums parts(c.problem, c.problem.keys);
  for (int pass = 0; pass < 3; ++pass) {
    for (std::size_t i = 0; i + 1 < borders.size(); ++i) {
      WindowProblem shard = c.problem;
      shard.first_key = borders[i];
      shard.keys = borders[i + 1] - borders[i];
      shard.k = c.problem.k + borders[i] * c.problem.kv_heads * c.problem.head_dim;
      if (pass == 0) {
        std::vector<float> mine(rows, std::numeric_limits<float>::quiet_NaN());
        window_maxima(shard, mine.data());
        for (std::size_t r = 0; r < rows; ++r) maxima[r] = std::max(maxima[r], mine[r]);
      } else if (pass == 1) {
        std::vector<Fixed> mine(rows, -1);
        window_denominators(shard, maxima.data(), mine.data());
        for (std::size_t r = 0; r < rows; ++r) denominators[r] += mine[r];
      } else {
        Sums mine(c.problem, shard.keys);
        mine.diagonals = parts.diagonals;
        window_probabilities(shard, maxima.data(), denominators.data(), mine.pointers());
        parts.diagonals = mine.diagonals;
        for (int h = 0; h < shard.heads; ++h) {
          for (std::int64_t j = 0; j < shard.keys; ++j) {
            const std::size_t to = static_cast<std::size_t>(h * c.problem.keys + borders[i] + j);
            parts.columns[to] = mine.columns[static_cast<std::size_t>(h * shard.keys + j)];
            parts.maxima[to] = mine.maxima[static_cast<std::size_t>(h * shard.keys + j)];
          }
        }
      }
    }
  }
  CHECK(parts.columns == whole.columns);
  CHECK(parts.maxima == whole.maxima);
  CHECK(parts.diagonals == whole.diagonals);
}

TEST_CASE("scores past what a thread keeps are computed again to the same sums") {
  // 40,000 keys are more than the 32,768 whose scores a task keeps.
  Case c(40000, 3, 1, 1, 4);
  Sums whole(c.problem, c.problem.keys);
  window_sums(c.problem, whole.pointers());
  const Naive naive = naive_sums(c.problem);
  CHECK(worst_error(whole.columns, naive.columns) < 1e-8);
  CHECK(worst_error(whole.diagonals, naive.diagonals) < 1e-8);
}
