// Oracles of the tensor operations in fp64, written from the formulas alone.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace reference {

// x (rows, inner), weight (outer, inner), bias (outer) or empty; returns (rows, outer).
inline std::vector<double> linear(const std::vector<float>& x, const std::vector<float>& weight,
                                  const std::vector<float>& bias, std::size_t rows, std::size_t outer,
                                  std::size_t inner) {
  std::vector<double> y(rows * outer);
  for (std::size_t t = 0; t < rows; ++t) {
    for (std::size_t o = 0; o < outer; ++o) {
      double sum = bias.empty() ? 0.0 : bias[o];
      for (std::size_t i = 0; i < inner; ++i) sum += double{x[t * inner + i]} * double{weight[o * inner + i]};
      y[t * outer + o] = sum;
    }
  }
  return y;
}

inline std::vector<double> rms_norm(const std::vector<float>& x, const std::vector<float>& weight,
                                    double offset, double eps, std::size_t rows, std::size_t columns) {
  std::vector<double> y(rows * columns);
  for (std::size_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (std::size_t c = 0; c < columns; ++c)
      squares += double{x[r * columns + c]} * double{x[r * columns + c]};
    const double root = std::sqrt(squares / static_cast<double>(columns) + eps);
    for (std::size_t c = 0; c < columns; ++c)
      y[r * columns + c] = x[r * columns + c] / root * (weight[c] + offset);
  }
  return y;
}

// One head of one token; angle(i) = position · frequency[i].
inline std::vector<double> rope(const std::vector<float>& x, const std::vector<double>& angles) {
  const std::size_t half = angles.size();
  std::vector<double> y(2 * half);
  for (std::size_t i = 0; i < half; ++i) {
    y[i] = x[i] * std::cos(angles[i]) - x[i + half] * std::sin(angles[i]);
    y[i + half] = x[i + half] * std::cos(angles[i]) + x[i] * std::sin(angles[i]);
  }
  return y;
}

inline double silu(double x) {
  return x / (1.0 + std::exp(-x));
}

inline double gelu_tanh(double x) {
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

}  // namespace reference
