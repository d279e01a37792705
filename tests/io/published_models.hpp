// config.json of the nine models of the study, as published, with what MODELS.md says of each.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/model_config.hpp"

namespace tessera::test {

inline ModelConfig parse_model(const nlohmann::json& config) {
  return parse_model_config(config, nullptr, "dir/config.json");
}
inline ModelConfig parse_model(const std::string& text) {
  return parse_model(nlohmann::json::parse(text));
}

inline std::string qwen_text(int hidden, int layers, int heads, int kv_heads, int mlp) {
  return fmt::format(
      R"({{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": {}, "initializer_range": 0.02,
    "intermediate_size": {}, "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2",
    "num_attention_heads": {}, "num_hidden_layers": {}, "num_key_value_heads": {}, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "use_cache": true, "use_sliding_window": false, "vocab_size": 152064}})",
      hidden, mlp, heads, layers, kv_heads);
}

inline std::string llama_text(int hidden, int layers, int heads, int mlp) {
  return fmt::format(
      R"({{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": {}, "intermediate_size": {},
    "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama", "num_attention_heads": {},
    "num_hidden_layers": {}, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192, "rope_type": "llama3"}},
    "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 128256}})",
      hidden, mlp, heads, layers);
}

// As published: the nested text model says only what differs from its class.
inline std::string gemma_text(int hidden, int layers, int mlp, const std::string& more) {
  return fmt::format(R"({{"architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
    "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
    "model_type": "gemma3", "torch_dtype": "bfloat16",
    "text_config": {{"hidden_size": {}, "intermediate_size": {}, "model_type": "gemma3_text",
      "num_hidden_layers": {}, {} "rope_scaling": {{"factor": 8.0, "rope_type": "linear"}},
      "sliding_window": 1024}},
    "vision_config": {{"hidden_size": 1152, "model_type": "siglip_vision_model"}}}})",
                     hidden, mlp, layers, more);
}

struct Published {
  const char* name;
  std::string text;
  std::int64_t parameters;
  std::int64_t kv_bytes;  // a token, bf16
};

inline std::vector<Published> published() {
  return {
      {"Qwen2.5-7B", qwen_text(3584, 28, 28, 4, 18944), 7'615'616'512, 57'344},
      {"Qwen2.5-14B", qwen_text(5120, 48, 40, 8, 13824), 14'770'033'664, 196'608},
      {"Qwen2.5-32B", qwen_text(5120, 64, 40, 8, 27648), 32'763'876'352, 262'144},
      {"Qwen2.5-72B", qwen_text(8192, 80, 64, 8, 29568), 72'706'203'648, 327'680},
      {"Llama-3.1-8B", llama_text(4096, 32, 32, 14336), 8'030'261'248, 131'072},
      {"Llama-3.1-70B", llama_text(8192, 80, 64, 28672), 70'553'706'496, 327'680},
      {"Gemma-3-4B", gemma_text(2560, 34, 10240, ""), 3'880'263'168, 139'264},
      {"Gemma-3-12B", gemma_text(3840, 48, 15360, R"("num_attention_heads": 16, "num_key_value_heads": 8,)"),
       11'766'034'176, 393'216},
      {"Gemma-3-27B",
       gemma_text(5376, 62, 21504,
                  R"("num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128,
                     "query_pre_attn_scalar": 168,)"),
       27'009'346'304, 507'904},
  };
}

inline nlohmann::json qwen() {
  return nlohmann::json::parse(qwen_text(3584, 28, 28, 4, 18944));
}
inline nlohmann::json llama() {
  return nlohmann::json::parse(llama_text(4096, 32, 32, 14336));
}
inline nlohmann::json gemma() {
  return nlohmann::json::parse(gemma_text(2560, 34, 10240, ""));
}

}  // namespace tessera::test
