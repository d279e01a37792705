// Masked grouped-query attention in fp64: every key is asked whether the row sees it, softmax by its
// definition.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "tests/reference/naive_attention.hpp"

namespace reference {

using Sees = std::function<bool(std::size_t row, std::size_t head, std::size_t position)>;

// p.window and p.held are not used: `sees` decides, the causal mask included.
inline AttentionResult masked_attention(const AttentionProblem& p, const Sees& sees) {
  AttentionResult result;
  result.out.assign(p.q.size(), 0.0);
  result.lse.assign(p.positions.size() * p.heads, -std::numeric_limits<double>::infinity());
  for (std::size_t row = 0; row < p.positions.size(); ++row) {
    for (std::size_t head = 0; head < p.heads; ++head) {
      const std::size_t kv_head = head * p.kv_heads / p.heads;
      const float* q = p.q.data() + (row * p.heads + head) * p.head_dim;
      std::vector<double> scores(p.length, -std::numeric_limits<double>::infinity());
      double largest = -std::numeric_limits<double>::infinity();
      for (std::size_t j = 0; j < p.length; ++j) {
        if (!sees(row, head, j)) continue;
        const float* k = p.k.data() + (j * p.kv_heads + kv_head) * p.head_dim;
        double score = 0;
        for (std::size_t d = 0; d < p.head_dim; ++d) score += double{q[d]} * double{k[d]};
        scores[j] = score * p.scale;
        largest = std::fmax(largest, scores[j]);
      }
      if (std::isinf(largest)) continue;
      double sum = 0;
      for (double score : scores) sum += std::exp(score - largest);
      double* out = result.out.data() + (row * p.heads + head) * p.head_dim;
      for (std::size_t j = 0; j < p.length; ++j) {
        if (std::isinf(scores[j])) continue;  // its value may be NaN
        const float* v = p.v.data() + (j * p.kv_heads + kv_head) * p.head_dim;
        for (std::size_t d = 0; d < p.head_dim; ++d) out[d] += std::exp(scores[j] - largest) / sum * v[d];
      }
      result.lse[row * p.heads + head] = largest + std::log(sum);
    }
  }
  return result;
}

}  // namespace reference
