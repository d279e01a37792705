// Models in the shape of the fixtures, with heads of 64 channels and drawn weights, and what they should
// answer: by the CPU transformer in fp32, and by a naive one that rounds as 16 bits do.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "io/model_config.hpp"
#include "io/rope_config.hpp"
#include "parallel/grid.hpp"
#include "runtime/core/random.hpp"
#include "runtime/model/memory_needs.hpp"
#include "runtime/model/transformer.hpp"
#include "tests/reference/naive_transformer.hpp"

namespace tessera::testing {

inline constexpr const char* kFixtureShapes[] = {"qwen2-tied", "qwen2-untied-yarn", "llama3", "gemma3",
                                                 "gemma3-text"};
inline constexpr std::uint64_t kWeightSeed = 17;

inline ModelConfig drawn_config(const std::string& fixture, DType dtype) {
  ModelConfig config = read_model_config(std::string(TESSERA_FIXTURES) + "/" + fixture);
  config.head_dim = 64;
  config.attention_scale = 0.125f;
  config.dtype = dtype;
  return config;
}

inline std::vector<std::int32_t> drawn_tokens(const ModelConfig& config, std::int64_t count,
                                              std::uint64_t seed) {
  std::vector<std::int32_t> tokens;
  for (std::int64_t t = 0; t < count; ++t) {
    tokens.push_back(static_cast<std::int32_t>(hash_counter(seed, 1, static_cast<std::uint64_t>(t)) %
                                               static_cast<std::uint64_t>(config.vocab)));
  }
  return tokens;
}

inline Grid one_rank_grid() {
  Grid grid;
  grid.world = make_local_communicator();
  grid.group = make_local_communicator();
  grid.tp = make_local_communicator();
  grid.sp = make_local_communicator();
  return grid;
}

// On the CPU, one rank, keys and values in fp32.
struct CpuModel {
  CpuModel(const ModelConfig& model_config, std::int64_t prompt, std::int64_t total, int batch,
           const AttentionPlan& plan = {})
      : config(model_config),
        grid(one_rank_grid()),
        rope(resolve_rope(config, "auto", total).rope),
        weights(load_weights("", config, {kWeightSeed}, *grid.tp, meter)),
        cache({static_cast<int>(config.layers), static_cast<int>(config.kv_heads),
               static_cast<int>(config.head_dim), DType::kF32, LayerPlans(plan, config).needs_page_bounds()},
              kv_slots_needed(config, {grid.shape, prompt, total, batch, DType::kF32}, plan), meter),
        transformer(config, rope, weights, grid, cache, total, meter, plan) {}

  ModelConfig config;
  MemoryMeter meter;
  Grid grid;
  RopeConfig rope;
  Weights weights;
  KvCache cache;
  Transformer transformer;
};

inline std::vector<float> widened(const MatrixView& view) {
  std::vector<float> values(static_cast<std::size_t>(view.rows * view.columns));
  convert_to_float(view.data, view.dtype, values.data(), values.size());
  return values;
}

inline reference::NaiveModel naive_model(const CpuModel& model) {
  const ModelConfig& c = model.config;
  reference::NaiveModel naive;
  naive.hidden = static_cast<std::size_t>(c.hidden);
  naive.heads = static_cast<std::size_t>(c.heads);
  naive.kv_heads = static_cast<std::size_t>(c.kv_heads);
  naive.head_dim = static_cast<std::size_t>(c.head_dim);
  naive.mlp = static_cast<std::size_t>(c.mlp);
  naive.vocab = static_cast<std::size_t>(c.vocab);
  naive.eps = c.norm_eps;
  naive.norm_offset = c.norm_weight_offset;
  naive.embedding_scale = c.embedding_scale;
  naive.attention_scale = c.attention_scale;
  naive.gelu = c.activation != Activation::kSilu;
  naive.embedding = widened(model.weights.embedding);
  naive.lm_head = widened(model.weights.lm_head);
  naive.final_norm = model.weights.final_norm;
  for (std::size_t i = 0; i < model.weights.layers.size(); ++i) {
    const LayerWeights& w = model.weights.layers[i];
    const bool local = c.layer_window[i] > 0 && c.family == ModelFamily::kGemma3;
    const RopeFrequencies rope = rope_frequencies(local ? c.local_rope : model.rope, c.head_dim);
    reference::NaiveLayer layer;
    layer.input_norm = w.input_norm;
    layer.post_attention_norm = w.post_attention_norm;
    layer.pre_mlp_norm = w.pre_mlp_norm;
    layer.post_mlp_norm = w.post_mlp_norm;
    layer.q_norm = w.q_norm;
    layer.k_norm = w.k_norm;
    layer.q_bias = w.q_bias;
    layer.k_bias = w.k_bias;
    layer.v_bias = w.v_bias;
    layer.q = widened(w.q);
    layer.k = widened(w.k);
    layer.v = widened(w.v);
    layer.o = widened(w.o);
    layer.gate = widened(w.gate);
    layer.up = widened(w.up);
    layer.down = widened(w.down);
    layer.frequencies.assign(rope.inverse.begin(), rope.inverse.end());
    layer.rope_scale = rope.attention_scale;
    layer.window = c.layer_window[i];
    naive.layers.push_back(std::move(layer));
  }
  return naive;
}

inline float rounded(float value, DType dtype) {
  return dtype == DType::kBF16  ? to_float(to_bfloat16(value))
         : dtype == DType::kF16 ? to_float(to_float16(value))
                                : value;
}

inline double largest_difference(const float* a, const float* b, std::size_t count) {
  double worst = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double difference = std::abs(double{a[i]} - double{b[i]});
    if (!(difference <= worst)) worst = difference;  // NaN stays
  }
  return worst;
}

// Logits (rows, V) of any model: of the last position of the prompt, then of one step for each token that
// follows, whatever the model would have said.
inline std::vector<float> forced_logits(LanguageModel& model, const std::vector<std::int32_t>& tokens,
                                        std::int64_t prompt, std::int64_t max_tokens,
                                        AttentionCounts* counts = nullptr) {
  const SequencePartition partition(prompt, 1);
  const int sequence = model.add_sequence(max_tokens);
  const std::int64_t last = prompt - 1;
  std::vector<float> all, logits;
  std::vector<std::int32_t> best;
  model.set_want_logits(true);
  model.prefill({sequence, &partition, {tokens.data(), static_cast<std::size_t>(prompt)}, {&last, 1}}, all);
  model.greedy_tokens(best);
  if (counts != nullptr) *counts = model.attention_counts();
  for (std::size_t at = static_cast<std::size_t>(prompt); at < tokens.size(); ++at) {
    DecodeRow row{sequence, &partition, static_cast<std::int32_t>(at), tokens[at], counts, nullptr};
    model.decode({&row, 1}, logits);
    model.greedy_tokens(best);
    all.insert(all.end(), logits.begin(), logits.end());
  }
  model.remove_sequence(sequence);
  return all;
}

}  // namespace tessera::testing
