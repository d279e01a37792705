#include "io/model_config.hpp"

#include <fmt/core.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "io/json.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

constexpr std::size_t kMaxConfigBytes = 4u << 20;

// Bounds that no model of the coming years passes; they keep products of sizes inside 64 bits.
constexpr std::int64_t kMaxHidden = 1 << 20;
constexpr std::int64_t kMaxMlp = 1 << 22;
constexpr std::int64_t kMaxLayers = 1024;
constexpr std::int64_t kMaxHeads = 4096;
constexpr std::int64_t kMaxHeadDim = 512;
constexpr std::int64_t kMaxVocab = 1 << 24;
constexpr std::int64_t kMaxPositions = 1 << 30;

// What a model_type stands for, with the defaults of its class in transformers.
struct TypeRow {
  const char* model_type;
  ModelFamily family;
  const char* prefix;  // where the text model's fields are
};
constexpr std::array<TypeRow, 4> kTypes = {{{"qwen2", ModelFamily::kQwen2, ""},
                                            {"llama", ModelFamily::kLlama3, ""},
                                            {"gemma3_text", ModelFamily::kGemma3, ""},
                                            {"gemma3", ModelFamily::kGemma3, "text_config."}}};

// Typed fields of the text model, wherever they are nested.
struct Fields {
  const nlohmann::json& config;
  std::string prefix;
  const std::string& file;

  std::string path(const char* key) const { return prefix + key; }
  const nlohmann::json* find(const char* key) const {  // nullptr when absent or null
    const nlohmann::json* value = json_find(config, path(key));
    return value == nullptr || value->is_null() ? nullptr : value;
  }
  std::int64_t size(const char* key, std::int64_t max) const {
    return json_integer(config, path(key).c_str(), file, 1, max);
  }
  std::int64_t size_or(const char* key, std::int64_t max, std::int64_t fallback) const {
    return json_integer_or(config, path(key).c_str(), file, 1, max, fallback);
  }
  double number_or(const char* key, double min, double max, double fallback) const {
    return json_number_or(config, path(key).c_str(), file, min, max, fallback);
  }
  bool flag_or(const char* key, bool fallback) const {
    return json_bool_or(config, path(key).c_str(), file, fallback);
  }
  std::string text_or(const char* key, std::string_view fallback) const {
    return json_string_or(config, path(key).c_str(), file, fallback);
  }
  [[noreturn]] void refuse(const char* key, std::string_view expected) const {
    const nlohmann::json* value = json_find(config, path(key));
    throw_json_field(file, path(key), value == nullptr ? nlohmann::json() : *value, expected);
  }
};

const TypeRow& parse_type(const nlohmann::json& config, const std::string& file) {
  const std::string model_type = json_string(config, "model_type", file);
  for (const TypeRow& row : kTypes) {
    if (model_type == row.model_type) return row;
  }
  throw_json_field(file, "model_type", config["model_type"], "one of qwen2, llama, gemma3, gemma3_text");
}

void parse_sizes(const Fields& fields, ModelConfig& model) {
  const bool gemma = model.family == ModelFamily::kGemma3;
  model.hidden = fields.size("hidden_size", kMaxHidden);
  model.layers = fields.size("num_hidden_layers", kMaxLayers);
  model.mlp = fields.size("intermediate_size", kMaxMlp);
  // A nested Gemma config leaves out what equals the class defaults.
  model.heads = gemma ? fields.size_or("num_attention_heads", kMaxHeads, 8)
                      : fields.size("num_attention_heads", kMaxHeads);
  model.kv_heads = fields.size_or("num_key_value_heads", kMaxHeads, gemma ? 4 : model.heads);
  model.vocab =
      gemma ? fields.size_or("vocab_size", kMaxVocab, 262208) : fields.size("vocab_size", kMaxVocab);
  model.max_positions = gemma ? fields.size_or("max_position_embeddings", kMaxPositions, 131072)
                              : fields.size("max_position_embeddings", kMaxPositions);
  if (model.heads % model.kv_heads != 0) {
    fields.refuse("num_key_value_heads", fmt::format("a divisor of num_attention_heads, {}", model.heads));
  }
  if (gemma) {
    model.head_dim = fields.size_or("head_dim", kMaxHeadDim, 256);
  } else if (fields.find("head_dim") != nullptr) {
    model.head_dim = fields.size("head_dim", kMaxHeadDim);
  } else {
    if (model.hidden % model.heads != 0) {
      fields.refuse("num_attention_heads",
                    fmt::format("a divisor of hidden_size, {}, or head_dim beside it", model.hidden));
    }
    model.head_dim = model.hidden / model.heads;
  }
  if (model.head_dim % 2 != 0 || model.head_dim > kMaxHeadDim) {
    fields.refuse(fields.find("head_dim") != nullptr ? "head_dim" : "num_attention_heads",
                  fmt::format("an even head_dim of at most {}, not {}", kMaxHeadDim, model.head_dim));
  }
}

// Whatever would change results and is not computed here is refused, never ignored.
void refuse_unsupported(const Fields& fields, ModelFamily family) {
  constexpr const char* kOff = "false or nothing: it is not supported";
  constexpr const char* kNull = "null or nothing: it is not supported";
  if (family != ModelFamily::kQwen2 && fields.flag_or("attention_bias", false))
    fields.refuse("attention_bias", kOff);
  if (fields.flag_or("mlp_bias", false)) fields.refuse("mlp_bias", kOff);
  if (fields.flag_or("use_bidirectional_attention", false))
    fields.refuse("use_bidirectional_attention", kOff);
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping", "quantization_config"}) {
    if (fields.find(key) != nullptr) fields.refuse(key, kNull);
  }
  if (const auto* value = json_find(fields.config, "quantization_config");
      value != nullptr && !value->is_null()) {
    throw_json_field(fields.file, "quantization_config", *value, kNull);
  }
  fields.number_or("partial_rotary_factor", 1, 1, 1);
  if (family == ModelFamily::kGemma3) {
    if (fields.text_or("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh") {
      fields.refuse("hidden_activation", "gelu_pytorch_tanh");
    }
  } else {
    const std::string act = fields.text_or("hidden_act", "silu");
    if (act != "silu" && act != "swish") fields.refuse("hidden_act", "silu");
  }
}

// `dtype`, or its old name `torch_dtype`; in a nested config the outer one is what loads. float32 when
// neither.
DType parse_config_dtype(const Fields& fields) {
  std::optional<DType> found;
  std::string found_path;
  for (const std::string& path :
       {std::string("dtype"), std::string("torch_dtype"), fields.path("dtype"), fields.path("torch_dtype")}) {
    const nlohmann::json* value = json_find(fields.config, path);
    if (value == nullptr || value->is_null()) continue;
    const std::string name = value->is_string() ? value->get<std::string>() : "";
    std::optional<DType> dtype;
    if (name == "float32") dtype = DType::kF32;
    if (name == "bfloat16") dtype = DType::kBF16;
    if (name == "float16") dtype = DType::kF16;
    if (!dtype) throw_json_field(fields.file, path, *value, "one of float32, bfloat16, float16");
    if (found && *found != *dtype) {
      throw_json_field(fields.file, path, *value, fmt::format("the same as {}", found_path));
    }
    if (!found) found_path = path;
    found = dtype;
  }
  return found.value_or(DType::kF32);
}

bool parse_tied(const Fields& fields, bool fallback) {
  const bool tied = fields.flag_or("tie_word_embeddings",
                                   json_bool_or(fields.config, "tie_word_embeddings", fields.file, fallback));
  if (json_bool_or(fields.config, "tie_word_embeddings", fields.file, tied) != tied) {
    fields.refuse("tie_word_embeddings", "the same as the outer tie_word_embeddings");
  }
  return tied;
}

// `layer_types`, which is there in newer files: whether each layer slides.
std::vector<bool> parse_layer_types(const Fields& fields, std::int64_t layers) {
  const nlohmann::json& types = json_array(fields.config, fields.path("layer_types").c_str(), fields.file);
  if (static_cast<std::int64_t>(types.size()) != layers) {
    fields.refuse("layer_types",
                  fmt::format("{} entries, as num_hidden_layers says, not {}", layers, types.size()));
  }
  std::vector<bool> slides;
  for (std::size_t i = 0; i < types.size(); ++i) {
    if (types[i] != "full_attention" && types[i] != "sliding_attention") {
      throw_json_field(fields.file, fmt::format("{}.{}", fields.path("layer_types"), i), types[i],
                       "full_attention or sliding_attention");
    }
    slides.push_back(types[i] == "sliding_attention");
  }
  return slides;
}

std::vector<std::int32_t> parse_windows(const Fields& fields, const ModelConfig& model) {
  const bool gemma = model.family == ModelFamily::kGemma3;
  // Qwen files carry a sliding_window that counts only when use_sliding_window is true.
  const bool enabled =
      gemma || (model.family == ModelFamily::kQwen2 && fields.flag_or("use_sliding_window", false));
  std::vector<bool> slides(static_cast<std::size_t>(model.layers), false);
  if (fields.find("layer_types") != nullptr) {
    slides = parse_layer_types(fields, model.layers);
  } else if (gemma) {
    const char* key = fields.find("sliding_window_pattern") != nullptr ? "sliding_window_pattern"
                                                                       : "_sliding_window_pattern";
    const std::int64_t pattern = fields.size_or(key, kMaxLayers, 6);
    for (std::int64_t i = 0; i < model.layers; ++i)
      slides[static_cast<std::size_t>(i)] = (i + 1) % pattern != 0;
  } else if (enabled) {
    const std::int64_t first =
        json_integer(fields.config, fields.path("max_window_layers").c_str(), fields.file, 0, kMaxLayers);
    for (std::int64_t i = first; i < model.layers; ++i) slides[static_cast<std::size_t>(i)] = true;
  }

  std::vector<std::int32_t> windows(slides.size(), 0);
  if (std::find(slides.begin(), slides.end(), true) == slides.end()) return windows;
  if (!enabled) {
    fields.refuse("layer_types", "full_attention only, as sliding windows are off for this model");
  }
  const std::int64_t window = gemma ? fields.size_or("sliding_window", kMaxPositions, 4096)
                                    : fields.size("sliding_window", kMaxPositions);
  for (std::size_t i = 0; i < slides.size(); ++i) {
    if (slides[i]) windows[i] = static_cast<std::int32_t>(window);
  }
  return windows;
}

// A number, or a list of numbers; token ids must be rows of the embedding table.
std::vector<std::int32_t> parse_ids(const nlohmann::json& config, const std::string& path,
                                    const std::string& file, std::int64_t vocab) {
  constexpr std::size_t kMaxIds = 256;
  const nlohmann::json* value = json_find(config, path);
  if (value == nullptr || value->is_null()) return {};
  if (!value->is_array())
    return {static_cast<std::int32_t>(json_integer(config, path.c_str(), file, 0, vocab - 1))};
  if (value->size() > kMaxIds) throw_json_field(file, path, *value, fmt::format("at most {} ids", kMaxIds));
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < value->size(); ++i) {
    const std::string item = fmt::format("{}.{}", path, i);
    const auto id = static_cast<std::int32_t>(json_integer(config, item.c_str(), file, 0, vocab - 1));
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
  return ids;
}

// The first of generation_config.json, config.json and the nested text model that names ids.
std::vector<std::int32_t> find_ids(const Fields& fields, const nlohmann::json* generation, const char* key,
                                   std::int64_t vocab) {
  std::vector<std::int32_t> ids;
  if (generation != nullptr) {
    std::string file = fields.file;
    if (const auto slash = file.rfind('/'); slash != std::string::npos) {
      file = file.substr(0, slash + 1) + "generation_config.json";
    } else {
      file = "generation_config.json";
    }
    ids = parse_ids(*generation, key, file, vocab);
  }
  if (ids.empty()) ids = parse_ids(fields.config, key, fields.file, vocab);
  if (ids.empty()) ids = parse_ids(fields.config, fields.path(key), fields.file, vocab);
  return ids;
}

void parse_token_ids(const Fields& fields, const nlohmann::json* generation, ModelConfig& model) {
  model.eos_ids = find_ids(fields, generation, "eos_token_id", model.vocab);
  const std::vector<std::int32_t> bos = find_ids(fields, generation, "bos_token_id", model.vocab);
  if (!bos.empty()) model.bos_id = bos.front();
  if (model.family == ModelFamily::kGemma3) {  // the class defaults
    if (model.eos_ids.empty() && model.vocab > 1) model.eos_ids = {1};
    if (!model.bos_id && model.vocab > 2) model.bos_id = 2;
  }
}

float round_to(double value, DType dtype) {
  const auto single = static_cast<float>(value);
  switch (dtype) {
    case DType::kF32:
      return single;
    case DType::kBF16:
      return to_float(to_bfloat16(single));
    case DType::kF16:
      return to_float(to_float16(single));
  }
  return single;
}

void set_gemma_row(const Fields& fields, ModelConfig& model) {
  model.norm_weight_offset = 1;
  model.qk_norm = true;
  model.post_norms = true;
  model.activation = Activation::kGeluTanh;
  model.embedding_scale = round_to(std::sqrt(static_cast<double>(model.hidden)), model.dtype);
  const double scalar = fields.number_or("query_pre_attn_scalar", 1e-3, 1e6, 256);
  model.attention_scale = static_cast<float>(1 / std::sqrt(scalar));
}

}  // namespace

std::string_view name_of(ModelFamily family) {
  switch (family) {
    case ModelFamily::kQwen2:
      return "qwen2";
    case ModelFamily::kLlama3:
      return "llama3";
    case ModelFamily::kGemma3:
      return "gemma3";
  }
  return "?";
}

ModelConfig parse_model_config(const nlohmann::json& config, const nlohmann::json* generation,
                               const std::string& file) {
  if (!config.is_object()) throw_json_field(file, "config", config, "an object");
  const TypeRow& type = parse_type(config, file);
  const Fields fields{config, type.prefix, file};
  if (!fields.prefix.empty()) {
    json_object(config, "text_config", file);
    if (fields.text_or("model_type", "gemma3_text") != "gemma3_text")
      fields.refuse("model_type", "gemma3_text");
  }

  ModelConfig model;
  model.family = type.family;
  model.model_type = type.model_type;
  const bool gemma = model.family == ModelFamily::kGemma3;
  parse_sizes(fields, model);
  refuse_unsupported(fields, model.family);
  model.norm_eps = fields.number_or("rms_norm_eps", 1e-12, 1e-1, 1e-6);
  model.qkv_bias = model.family == ModelFamily::kQwen2;
  model.attention_scale = static_cast<float>(1 / std::sqrt(static_cast<double>(model.head_dim)));
  model.tied_embeddings = parse_tied(fields, gemma);
  model.dtype = parse_config_dtype(fields);
  if (gemma) {
    set_gemma_row(fields, model);
    const RopePair pair = parse_rope_per_type(config, fields.prefix, file, model.max_positions);
    model.rope = pair.global;
    model.local_rope = pair.local;
  } else {
    model.rope = parse_rope(config, fields.prefix, file, 10000, model.max_positions);
    model.local_rope = model.rope;
  }
  model.layer_window = parse_windows(fields, model);
  parse_token_ids(fields, generation, model);
  return model;
}

ModelConfig read_model_config(const std::string& model_dir) {
  const std::string path = model_dir + "/config.json";
  const std::string generation_path = model_dir + "/generation_config.json";
  const nlohmann::json config = read_json_file(path, kMaxConfigBytes);
  struct stat status {};
  if (::stat(generation_path.c_str(), &status) != 0) return parse_model_config(config, nullptr, path);
  const nlohmann::json generation = read_json_file(generation_path, kMaxConfigBytes);
  if (!generation.is_object())
    throw_json_field(generation_path, "generation_config", generation, "an object");
  return parse_model_config(config, &generation, path);
}

std::int64_t ModelConfig::parameter_count() const {
  const std::int64_t query = heads * head_dim, kv = kv_heads * head_dim;
  std::int64_t layer = 2 * hidden * query + 2 * hidden * kv + 3 * hidden * mlp;
  layer += (post_norms ? 4 : 2) * hidden;
  if (qkv_bias) layer += query + 2 * kv;
  if (qk_norm) layer += 2 * head_dim;
  return layers * layer + (tied_embeddings ? 1 : 2) * vocab * hidden + hidden;
}

std::uint64_t ModelConfig::fingerprint() const {
  // {:a} writes a double exactly.
  std::string text =
      fmt::format("{} {} {} {} {} {} {} {} {:a} {:a} {} {} {} {} {:a} {:a} {} {} {}", name_of(family), hidden,
                  layers, heads, kv_heads, head_dim, mlp, vocab, norm_eps, norm_weight_offset, qkv_bias,
                  qk_norm, post_norms, static_cast<int>(activation), embedding_scale, attention_scale,
                  tied_embeddings, max_positions, name_of(dtype));
  for (const RopeConfig* r : {&rope, &local_rope}) {
    text += fmt::format(" {} {:a} {:a} {} {:a} {:a} {:a} {:a} {} {:a}", name_of(r->kind), r->theta, r->factor,
                        r->original_max_positions, r->low_freq_factor, r->high_freq_factor, r->beta_fast,
                        r->beta_slow, r->truncate, r->attention_factor.value_or(0));
  }
  for (const std::int32_t window : layer_window) text += fmt::format(" w{}", window);
  for (const std::int32_t id : eos_ids) text += fmt::format(" e{}", id);
  text += fmt::format(" b{}", bos_id.value_or(-1));
  return XXH64(text.data(), text.size(), 0);
}

}  // namespace tessera
