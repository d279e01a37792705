// A model as its config.json describes it: a row of values. Families differ by these values, never by
// subclasses.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/rope_config.hpp"
#include "runtime/core/dtype.hpp"
#include "runtime/core/ops.hpp"

namespace tessera {

enum class ModelFamily : std::uint8_t { kQwen2, kLlama3, kGemma3 };
std::string_view name_of(ModelFamily family);  // "qwen2", "llama3", "gemma3"

struct ModelConfig {
  ModelFamily family = ModelFamily::kQwen2;
  std::string model_type;  // as config.json says: "qwen2", "llama", "gemma3", "gemma3_text"

  std::int64_t hidden = 0;    // E
  std::int64_t layers = 0;    // L
  std::int64_t heads = 0;     // H of the whole model
  std::int64_t kv_heads = 0;  // K of the whole model; divides heads
  std::int64_t head_dim = 0;  // D; even; not E / H in general
  std::int64_t mlp = 0;       // F
  std::int64_t vocab = 0;     // V: rows of the embedding table, padding included

  double norm_eps = 1e-6;
  float norm_weight_offset = 0;  // 1 where files store w - 1 (Gemma)
  bool qkv_bias = false;
  bool qk_norm = false;  // RMS norm of each head of q and k, before rope
  bool post_norms =
      false;  // norms of what attention and MLP return: Gemma's four norms a layer instead of two
  Activation activation = Activation::kSilu;
  // Gemma: sqrt(E) rounded to `dtype`, as the model was trained (50.5 for E = 2560 in bf16); else 1.
  float embedding_scale = 1;
  float attention_scale = 0;  // multiplies q·k: D^-0.5, or query_pre_attn_scalar^-0.5
  bool tied_embeddings = false;
  std::int64_t max_positions = 0;  // max_position_embeddings; what a run may use: resolve_rope
  DType dtype = DType::kF32;       // of config.json; files may hold others

  RopeConfig rope;        // of full-attention layers
  RopeConfig local_rope;  // of sliding layers where they have their own (Gemma), else equal to rope
  std::vector<std::int32_t> layer_window;  // (L) keys seen, self included: kv > q - window; 0: full attention

  std::vector<std::int32_t> eos_ids;  // any of them ends an answer; empty when neither file names one
  std::optional<std::int32_t> bos_id;

  // Hash of all of the above: two configs with the same value compute the same function.
  std::uint64_t fingerprint() const;
  std::int64_t parameter_count() const;  // tied embeddings count once
};

// config.json, and generation_config.json where it exists (its token ids win). InputError names file, field,
// value.
ModelConfig read_model_config(const std::string& model_dir);

// generation may be null. `file` names config.json in errors.
ModelConfig parse_model_config(const nlohmann::json& config, const nlohmann::json* generation,
                               const std::string& file);

}  // namespace tessera
