// Causal grouped-query attention in fp64 over plain arrays: one loop over keys, softmax by its definition.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

namespace reference {

struct AttentionResult {
  std::vector<double> out;  // (rows, heads, head_dim)
  std::vector<double> lse;  // (rows, heads)
};

struct AttentionProblem {
  std::size_t heads = 0;
  std::size_t kv_heads = 0;
  std::size_t head_dim = 0;
  std::vector<float> q;                 // (rows, heads, head_dim)
  std::vector<std::int32_t> positions;  // (rows)
  std::vector<float> k;                 // (length, kv_heads, head_dim)
  std::vector<float> v;                 // likewise
  std::size_t length = 0;
  double scale = 0;
  std::int64_t window = 0;
  std::function<bool(std::size_t kv_head, std::size_t position)> held;  // keys that exist for this caller
};

inline AttentionResult attention(const AttentionProblem& p) {
  AttentionResult result;
  result.out.assign(p.q.size(), 0.0);
  result.lse.assign(p.positions.size() * p.heads, -std::numeric_limits<double>::infinity());
  for (std::size_t row = 0; row < p.positions.size(); ++row) {
    for (std::size_t head = 0; head < p.heads; ++head) {
      const std::size_t kv_head = head / (p.heads / p.kv_heads);
      const float* q = p.q.data() + (row * p.heads + head) * p.head_dim;
      std::vector<std::size_t> keys;
      std::vector<double> scores;
      for (std::size_t j = 0; j < p.length; ++j) {
        const std::int64_t distance = p.positions[row] - static_cast<std::int64_t>(j);
        if (distance < 0 || (p.window != 0 && distance >= p.window) || !p.held(kv_head, j)) continue;
        double score = 0;
        const float* k = p.k.data() + (j * p.kv_heads + kv_head) * p.head_dim;
        for (std::size_t d = 0; d < p.head_dim; ++d) score += double{q[d]} * double{k[d]};
        keys.push_back(j);
        scores.push_back(score * p.scale);
      }
      if (keys.empty()) continue;
      double largest = scores[0];
      for (double score : scores) largest = std::max(largest, score);
      double sum = 0;
      for (double score : scores) sum += std::exp(score - largest);
      double* out = result.out.data() + (row * p.heads + head) * p.head_dim;
      for (std::size_t i = 0; i < keys.size(); ++i) {
        const double weight = std::exp(scores[i] - largest) / sum;
        const float* v = p.v.data() + (keys[i] * p.kv_heads + kv_head) * p.head_dim;
        for (std::size_t d = 0; d < p.head_dim; ++d) out[d] += weight * v[d];
      }
      result.lse[row * p.heads + head] = largest + std::log(sum);
    }
  }
  return result;
}

}  // namespace reference
