// The models of the study and two small ones, as their published shapes say.
#pragma once

#include <string>
#include <vector>

#include "io/model_config.hpp"
#include "jobs/plan/plan.hpp"
#include "runtime/model/tensor_plan.hpp"

namespace tessera::test {

struct PublishedModel {
  std::string name;
  ModelFamily family;
  std::int64_t hidden, layers, heads, kv_heads, head_dim, mlp, vocab;
  std::int64_t parameters, kv_bytes_token;  // in bf16
  bool tied_embeddings = false;
};

inline const std::vector<PublishedModel>& published_models() {
  constexpr auto kQwen = ModelFamily::kQwen2;
  constexpr auto kLlama = ModelFamily::kLlama3;
  constexpr auto kGemma = ModelFamily::kGemma3;
  static const std::vector<PublishedModel> models = {
      {"Qwen2.5-0.5B", kQwen, 896, 24, 14, 2, 64, 4864, 151936, 494032768, 12288, true},
      {"Qwen2.5-3B", kQwen, 2048, 36, 16, 2, 128, 11008, 151936, 3085938688, 36864, true},
      {"Qwen2.5-7B", kQwen, 3584, 28, 28, 4, 128, 18944, 152064, 7615616512, 57344},
      {"Qwen2.5-14B", kQwen, 5120, 48, 40, 8, 128, 13824, 152064, 14770033664, 196608},
      {"Qwen2.5-32B", kQwen, 5120, 64, 40, 8, 128, 27648, 152064, 32763876352, 262144},
      {"Qwen2.5-72B", kQwen, 8192, 80, 64, 8, 128, 29568, 152064, 72706203648, 327680},
      {"Llama-3.1-8B", kLlama, 4096, 32, 32, 8, 128, 14336, 128256, 8030261248, 131072},
      {"Llama-3.1-70B", kLlama, 8192, 80, 64, 8, 128, 28672, 128256, 70553706496, 327680},
      {"Gemma-3-4B", kGemma, 2560, 34, 8, 4, 256, 10240, 262208, 3880263168, 139264, true},
      {"Gemma-3-12B", kGemma, 3840, 48, 16, 8, 256, 15360, 262208, 11766034176, 393216, true},
      {"Gemma-3-27B", kGemma, 5376, 62, 32, 16, 128, 21504, 262208, 27009346304, 507904, true},
  };
  return models;
}

inline ModelConfig config_of(const PublishedModel& m) {
  ModelConfig c;
  c.family = m.family;
  c.hidden = m.hidden;
  c.layers = m.layers;
  c.heads = m.heads;
  c.kv_heads = m.kv_heads;
  c.head_dim = m.head_dim;
  c.mlp = m.mlp;
  c.vocab = m.vocab;
  c.dtype = DType::kBF16;
  const bool gemma = m.family == ModelFamily::kGemma3;
  c.qkv_bias = m.family == ModelFamily::kQwen2;
  c.qk_norm = c.post_norms = gemma;
  c.tied_embeddings = m.tied_embeddings;
  for (int layer = 0; layer < m.layers; ++layer)
    c.layer_window.push_back(gemma && (layer + 1) % 6 != 0 ? 1024 : 0);
  return c;
}

inline const PublishedModel& published(const std::string& name) {
  for (const PublishedModel& m : published_models()) {
    if (m.name == name) return m;
  }
  throw std::invalid_argument(name);
}

// A dense run in bf16.
inline PlanProblem problem_of(const ModelConfig& config, std::int64_t length, int ranks = 1) {
  PlanProblem p;
  p.config = config;
  p.weights.dtypes.assign(declare_tensors(config).size(), DType::kBF16);
  p.length = length;
  p.output_tokens = 1024;
  p.dtype = p.kv_dtype = DType::kBF16;
  p.ranks = ranks;
  return p;
}

inline const GridPlan& grid_of(const Plan& plan, int tp, int sp) {
  for (const GridPlan& grid : plan.grids) {
    if (grid.shape.tp == tp && grid.shape.sp == sp) return grid;
  }
  throw std::invalid_argument("no such grid");
}

}  // namespace tessera::test
