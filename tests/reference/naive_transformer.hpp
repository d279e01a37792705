// A decoder from the formulas alone, all rows at once, in fp32 with every tensor rounded as a framework that
// keeps activations in 16 bits rounds it: what low precision costs by itself. With `round` the identity it is
// an oracle of the exact model.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace reference {

struct NaiveLayer {
  std::vector<float> input_norm, post_attention_norm, pre_mlp_norm, post_mlp_norm;  // (E); empty: none
  std::vector<float> q_norm, k_norm;                                                // (D); empty: none
  std::vector<float> q_bias, k_bias, v_bias;                                        // empty: none
  std::vector<float> q, k, v, o, gate, up, down;                                    // (out, in)
  std::vector<double> frequencies;                                                  // (D/2) of rope
  double rope_scale = 1;                                                            // of cosines and sines
  std::int64_t window = 0;                                                          // 0: none
};

struct NaiveModel {
  std::size_t hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, mlp = 0, vocab = 0;
  double eps = 0, norm_offset = 0, embedding_scale = 1, attention_scale = 0;
  bool gelu = false;
  std::vector<float> embedding, lm_head, final_norm;
  std::vector<NaiveLayer> layers;
};

class NaiveTransformer {
 public:
  using Round = std::function<float(float)>;
  NaiveTransformer(const NaiveModel& model, Round round) : m_(model), round_(std::move(round)) {}

  // (T, V), not rounded.
  std::vector<float> logits(const std::vector<std::int32_t>& tokens) const {
    const std::size_t T = tokens.size(), E = m_.hidden;
    std::vector<float> x(T * E);
    for (std::size_t t = 0; t < T; ++t) {
      for (std::size_t e = 0; e < E; ++e) {
        x[t * E + e] = round_(m_.embedding[static_cast<std::size_t>(tokens[t]) * E + e] *
                              static_cast<float>(m_.embedding_scale));
      }
    }
    for (const NaiveLayer& layer : m_.layers) {
      add(x, attention(layer, norm(x, layer.input_norm, E)), layer.post_attention_norm);
      add(x, mlp(layer, norm(x, layer.pre_mlp_norm, E)), layer.post_mlp_norm);
    }
    return product(norm(x, m_.final_norm, E), m_.lm_head, {}, E, false);
  }

 private:
  std::vector<float> product(const std::vector<float>& x, const std::vector<float>& weight,
                             const std::vector<float>& bias, std::size_t inner, bool rounds = true) const {
    const std::size_t rows = x.size() / inner, outer = weight.size() / inner;
    std::vector<float> y(rows * outer);
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t o = 0; o < outer; ++o) {
        float sum = 0;
        for (std::size_t i = 0; i < inner; ++i) sum += x[r * inner + i] * weight[o * inner + i];
        if (!bias.empty()) sum += bias[o];
        y[r * outer + o] = rounds ? round_(sum) : sum;
      }
    }
    return y;
  }

  // Families without an offset round the normed value before it meets the weight.
  std::vector<float> norm(const std::vector<float>& x, const std::vector<float>& weight,
                          std::size_t width) const {
    std::vector<float> y(x.size());
    for (std::size_t first = 0; first < x.size(); first += width) {
      double squares = 0;
      for (std::size_t i = 0; i < width; ++i) squares += double{x[first + i]} * double{x[first + i]};
      const double factor = 1 / std::sqrt(squares / static_cast<double>(width) + m_.eps);
      for (std::size_t i = 0; i < width; ++i) {
        const auto normed = static_cast<float>(x[first + i] * factor);
        y[first + i] = m_.norm_offset == 0
                           ? round_(round_(normed) * weight[i])
                           : round_(static_cast<float>(normed * (weight[i] + m_.norm_offset)));
      }
    }
    return y;
  }

  void add(std::vector<float>& x, std::vector<float> branch, const std::vector<float>& post_norm) const {
    if (!post_norm.empty()) branch = norm(branch, post_norm, m_.hidden);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = round_(x[i] + branch[i]);
  }

  void rotate(const NaiveLayer& layer, std::vector<float>& x, std::size_t heads) const {
    const std::size_t half = m_.head_dim / 2, width = heads * m_.head_dim;
    for (std::size_t t = 0; t < x.size() / width; ++t) {
      for (std::size_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(t) * static_cast<float>(layer.frequencies[i]);
        const auto cosine = static_cast<float>(std::cos(angle) * layer.rope_scale);
        const auto sine = static_cast<float>(std::sin(angle) * layer.rope_scale);
        for (std::size_t h = 0; h < heads; ++h) {
          float& low = x[t * width + h * m_.head_dim + i];
          float& high = x[t * width + h * m_.head_dim + half + i];
          const float a = low, b = high;
          low = round_(a * cosine - b * sine);
          high = round_(b * cosine + a * sine);
        }
      }
    }
  }

  std::vector<float> attention(const NaiveLayer& layer, const std::vector<float>& x) const {
    const std::size_t D = m_.head_dim, H = m_.heads, K = m_.kv_heads, T = x.size() / m_.hidden;
    std::vector<float> q = product(x, layer.q, layer.q_bias, m_.hidden);
    std::vector<float> k = product(x, layer.k, layer.k_bias, m_.hidden);
    const std::vector<float> v = product(x, layer.v, layer.v_bias, m_.hidden);
    if (!layer.q_norm.empty()) q = norm(q, layer.q_norm, D), k = norm(k, layer.k_norm, D);
    rotate(layer, q, H);
    rotate(layer, k, K);
    std::vector<float> out(T * H * D);
    for (std::size_t t = 0; t < T; ++t) {
      const std::size_t window = static_cast<std::size_t>(layer.window);
      const std::size_t first = window > 0 && t + 1 > window ? t + 1 - window : 0;
      for (std::size_t h = 0; h < H; ++h) {
        const std::size_t kv = h / (H / K);
        std::vector<double> weights;
        double highest = -INFINITY, sum = 0;
        for (std::size_t j = first; j <= t; ++j) {
          double score = 0;
          for (std::size_t d = 0; d < D; ++d)
            score += double{q[(t * H + h) * D + d]} * double{k[(j * K + kv) * D + d]};
          weights.push_back(score * m_.attention_scale);
          highest = std::max(highest, weights.back());
        }
        for (double& w : weights) sum += w = std::exp(w - highest);
        for (std::size_t d = 0; d < D; ++d) {
          double total = 0;
          for (std::size_t j = first; j <= t; ++j) total += weights[j - first] * v[(j * K + kv) * D + d];
          out[(t * H + h) * D + d] = round_(static_cast<float>(total / sum));
        }
      }
    }
    return product(out, layer.o, {}, H * D);
  }

  std::vector<float> mlp(const NaiveLayer& layer, const std::vector<float>& x) const {
    std::vector<float> gate = product(x, layer.gate, {}, m_.hidden);
    const std::vector<float> up = product(x, layer.up, {}, m_.hidden);
    for (std::size_t i = 0; i < gate.size(); ++i) {
      const double g = gate[i];
      const double active = m_.gelu
                                ? 0.5 * g * (1 + std::tanh(std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g)))
                                : g / (1 + std::exp(-g));
      gate[i] = round_(round_(static_cast<float>(active)) * up[i]);
    }
    return product(gate, layer.down, {}, m_.mlp);
  }

  const NaiveModel& m_;
  Round round_;
};

}  // namespace reference
