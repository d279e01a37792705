// config.json: the nine models of the study by their published numbers, every way of writing a field, and the
// rope.
#include <doctest/doctest.h>
#include <fmt/core.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "io/model_config.hpp"
#include "tests/io/checkpoint_files.hpp"

using namespace tessera;
using namespace tessera::test;
using nlohmann::json;

namespace {

ModelConfig parse(const json& config) {
  return parse_model_config(config, nullptr, "dir/config.json");
}
ModelConfig parse(const std::string& text) {
  return parse(json::parse(text));
}

std::string qwen_text(int hidden, int layers, int heads, int kv_heads, int mlp) {
  return fmt::format(
      R"({{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": {}, "initializer_range": 0.02,
    "intermediate_size": {}, "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2",
    "num_attention_heads": {}, "num_hidden_layers": {}, "num_key_value_heads": {}, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "use_cache": true, "use_sliding_window": false, "vocab_size": 152064}})",
      hidden, mlp, heads, layers, kv_heads);
}

std::string llama_text(int hidden, int layers, int heads, int mlp) {
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
std::string gemma_text(int hidden, int layers, int mlp, const std::string& more) {
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

std::vector<Published> published() {
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

json qwen() {
  return json::parse(qwen_text(3584, 28, 28, 4, 18944));
}
json llama() {
  return json::parse(llama_text(4096, 32, 32, 14336));
}
json gemma() {
  return json::parse(gemma_text(2560, 34, 10240, ""));
}

}  // namespace

TEST_CASE("the nine models of the study: parameters and KV bytes a token") {
  for (const Published& model : published()) {
    CAPTURE(model.name);
    const ModelConfig config = parse(model.text);
    CHECK(config.parameter_count() == model.parameters);
    CHECK(config.layers * config.kv_heads * config.head_dim * 2 * 2 == model.kv_bytes);
    CHECK(config.dtype == DType::kBF16);
    CHECK(static_cast<std::int64_t>(config.layer_window.size()) == config.layers);
  }
}

TEST_CASE("Qwen: a row of values") {
  const ModelConfig config = parse(qwen());
  CHECK(config.family == ModelFamily::kQwen2);
  CHECK(config.qkv_bias);
  CHECK_FALSE(config.qk_norm);
  CHECK_FALSE(config.post_norms);
  CHECK_FALSE(config.tied_embeddings);
  CHECK(config.head_dim == 128);
  CHECK(config.norm_eps == 1e-6);
  CHECK(config.norm_weight_offset == 0.0f);
  CHECK(config.embedding_scale == 1.0f);
  CHECK(config.attention_scale == doctest::Approx(1 / std::sqrt(128.0)));
  CHECK(config.activation == Activation::kSilu);
  CHECK(config.rope.kind == RopeKind::kDefault);
  CHECK(config.rope.theta == 1e6);
  CHECK(config.local_rope == config.rope);
  CHECK(config.layer_window ==
        std::vector<std::int32_t>(28, 0));  // sliding_window counts only when it is used
  CHECK(config.eos_ids == std::vector<std::int32_t>{151645});
  CHECK(config.bos_id == 151643);
}

TEST_CASE("Llama: a row of values") {
  const ModelConfig config = parse(llama());
  CHECK(config.family == ModelFamily::kLlama3);
  CHECK_FALSE(config.qkv_bias);
  CHECK(config.norm_eps == 1e-5);
  CHECK(config.rope.kind == RopeKind::kLlama3);
  CHECK(config.rope.theta == 5e5);
  CHECK(config.rope.factor == 8);
  CHECK(config.rope.original_max_positions == 8192);
  CHECK(config.eos_ids == std::vector<std::int32_t>{128001, 128008, 128009});
}

TEST_CASE("Gemma: a row of values, from what the nested file leaves out") {
  const ModelConfig config = parse(gemma());
  CHECK(config.family == ModelFamily::kGemma3);
  CHECK(config.heads == 8);
  CHECK(config.kv_heads == 4);
  CHECK(config.head_dim == 256);
  CHECK(config.vocab == 262208);
  CHECK(config.max_positions == 131072);
  CHECK(config.norm_weight_offset == 1.0f);
  CHECK(config.qk_norm);
  CHECK(config.post_norms);
  CHECK(config.tied_embeddings);
  CHECK(config.activation == Activation::kGeluTanh);
  CHECK(config.attention_scale == 1.0f / 16);
  CHECK(config.rope.kind == RopeKind::kLinear);
  CHECK(config.rope.theta == 1e6);
  CHECK(config.rope.factor == 8);
  CHECK(config.local_rope.kind == RopeKind::kDefault);
  CHECK(config.local_rope.theta == 1e4);
  for (int i = 0; i < 34; ++i) CHECK(config.layer_window[i] == ((i + 1) % 6 == 0 ? 0 : 1024));
  CHECK(config.eos_ids == std::vector<std::int32_t>{1, 106});
  CHECK(parse(published()[6].text).embedding_scale == 50.5f);
  CHECK(parse(published()[7].text).embedding_scale == 62.0f);
  CHECK(parse(published()[8].text).embedding_scale == 73.5f);
  CHECK(parse(published()[8].text).attention_scale == doctest::Approx(1 / std::sqrt(168.0)));
  json single = gemma();
  single["torch_dtype"] = "float32";
  CHECK(parse(single).embedding_scale == std::sqrt(2560.0f));
}

TEST_CASE("YaRN: bounds of the ramp and attention factor for Qwen at factor 4") {
  RopeConfig rope;
  rope.kind = RopeKind::kYarn;
  rope.theta = 1e6;
  rope.factor = 4;
  rope.original_max_positions = 32768;
  const RopeFrequencies found = rope_frequencies(rope, 128);
  REQUIRE(found.inverse.size() == 64);
  CHECK(found.attention_scale == doctest::Approx(1.138629436).epsilon(1e-9));
  for (int i = 0; i < 64; ++i) {
    CAPTURE(i);
    const double plain = std::pow(1e6, -i / 64.0);
    const double ratio = found.inverse[i] / plain;
    if (i <= 23) CHECK(ratio == doctest::Approx(1).epsilon(1e-12));     // low = 23
    if (i >= 40) CHECK(ratio == doctest::Approx(0.25).epsilon(1e-12));  // high = 40
    if (i > 23 && i < 40) CHECK(ratio == doctest::Approx(1 - 0.75 * (i - 23) / 17.0).epsilon(1e-12));
  }
  rope.attention_factor = 1.5;
  CHECK(rope_frequencies(rope, 128).attention_scale == 1.5);
  rope.attention_factor.reset();
  rope.factor = 1;
  CHECK(rope_frequencies(rope, 128).attention_scale == 1);
}

TEST_CASE("llama3, linear and default frequencies") {
  const RopeFrequencies plain = rope_frequencies({}, 8);
  CHECK(plain.attention_scale == 1);
  for (int i = 0; i < 4; ++i) CHECK(plain.inverse[i] == doctest::Approx(std::pow(10.0, -i)).epsilon(1e-14));

  const ModelConfig gemma3 = parse(gemma());
  const RopeFrequencies linear = rope_frequencies(gemma3.rope, 256);
  CHECK(linear.inverse[0] == 0.125);
  CHECK(linear.inverse[64] == doctest::Approx(1e-3 / 8).epsilon(1e-12));

  const RopeFrequencies found = rope_frequencies(parse(llama()).rope, 128);
  int kept = 0, blended = 0, divided = 0;
  for (int i = 0; i < 64; ++i) {
    const double inv = std::pow(5e5, -i / 64.0), wavelength = 2 * std::numbers::pi / inv;
    double expected = inv;
    if (wavelength > 8192) {
      expected = inv / 8;
      ++divided;
    } else if (wavelength >= 2048) {
      const double s = (8192 / wavelength - 1) / 3;
      expected = (1 - s) * inv / 8 + s * inv;
      ++blended;
    } else {
      ++kept;
    }
    CHECK(found.inverse[i] == doctest::Approx(expected).epsilon(1e-12));
  }
  CHECK(kept > 0);
  CHECK(blended > 0);
  CHECK(divided > 0);
}

TEST_CASE("config.json: each way of writing the same model reads the same") {
  const std::uint64_t reference = parse(qwen()).fingerprint();
  const auto same = [&](const char* what, const json& config) {
    CAPTURE(what);
    CHECK(parse(config).fingerprint() == reference);
  };
  json c = qwen();
  c.erase("torch_dtype");
  c["dtype"] = "bfloat16";
  same("dtype", c);
  c["torch_dtype"] = "bfloat16";
  same("both dtypes", c);
  c = qwen();
  c["rope_scaling"] = nullptr;
  same("rope_scaling null", c);
  c.erase("rope_theta");
  c["rope_parameters"] = {{"rope_theta", 1e6}, {"rope_type", "default"}};
  same("rope_parameters", c);
  c["rope_theta"] = 1e6;
  same("rope_parameters beside an equal rope_theta", c);
  c = qwen();
  c["head_dim"] = 128;
  same("head_dim", c);
  c = qwen();
  c["layer_types"] = std::vector<std::string>(28, "full_attention");
  same("layer_types", c);
  c = qwen();
  c["eos_token_id"] = {151645, 151645};
  same("eos as a list", c);

  json yarn = qwen(), old = qwen(), twice = qwen();
  yarn["rope_scaling"] = {
      {"factor", 4.0}, {"original_max_position_embeddings", 32768}, {"rope_type", "yarn"}};
  old["rope_scaling"] = {{"factor", 4.0}, {"original_max_position_embeddings", 32768}, {"type", "yarn"}};
  CHECK(parse(yarn).fingerprint() != reference);
  CHECK(parse(yarn).fingerprint() == parse(old).fingerprint());
  old["rope_scaling"].erase("original_max_position_embeddings");  // then it is max_position_embeddings
  CHECK(parse(yarn).fingerprint() == parse(old).fingerprint());
  twice["rope_parameters"] = yarn["rope_scaling"];
  twice["rope_scaling"] = yarn["rope_scaling"];
  CHECK(parse(yarn).fingerprint() == parse(twice).fingerprint());

  json plain = json::parse(
      R"({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 96, "vocab_size": 300, "max_position_embeddings": 128})");
  const ModelConfig defaults = parse(plain);  // of the class
  CHECK(defaults.kv_heads == 4);
  CHECK(defaults.norm_eps == 1e-6);
  CHECK(defaults.rope.theta == 10000);
  CHECK(defaults.dtype == DType::kF32);
  CHECK_FALSE(defaults.tied_embeddings);
  CHECK(defaults.eos_ids.empty());
  CHECK_FALSE(defaults.bos_id.has_value());
  plain["head_dim"] = 10;  // not hidden / heads
  plain["tie_word_embeddings"] = true;
  CHECK(parse(plain).head_dim == 10);
  CHECK(parse(plain).tied_embeddings);
}

TEST_CASE("config.json: Gemma nested or flat, ropes flat or per type, windows by list, pattern or default") {
  const std::uint64_t reference = parse(gemma()).fingerprint();
  const auto same = [&](const char* what, const json& config) {
    CAPTURE(what);
    CHECK(parse(config).fingerprint() == reference);
  };
  json c = gemma();
  c["text_config"]["rope_theta"] = 1e6;
  c["text_config"]["rope_local_base_freq"] = 10000;
  c["text_config"]["sliding_window_pattern"] = 6;
  c["text_config"]["attn_logit_softcapping"] = nullptr;
  c["text_config"]["torch_dtype"] = "bfloat16";
  c["tie_word_embeddings"] = true;
  same("defaults said aloud", c);

  c["text_config"].erase("rope_scaling");
  c["text_config"].erase("rope_theta");
  c["text_config"].erase("rope_local_base_freq");
  c["text_config"]["rope_parameters"] = json::parse(
      R"({"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
          "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}})");
  same("ropes per type", c);
  c["text_config"]["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 8.0}};
  same("ropes per type beside an equal rope_scaling", c);

  json flat = gemma()["text_config"];
  flat["eos_token_id"] = {1, 106};
  flat["dtype"] = "bfloat16";
  same("gemma3_text", flat);

  std::vector<std::string> types(34, "sliding_attention");
  for (int i = 5; i < 34; i += 6) types[i] = "full_attention";
  flat["layer_types"] = types;
  flat["sliding_window_pattern"] = 3;  // the list wins
  same("layer_types", flat);
  types[0] = "full_attention";
  flat["layer_types"] = types;
  CHECK(parse(flat).layer_window[0] == 0);
  CHECK(parse(flat).layer_window[1] == 1024);

  flat.erase("layer_types");
  flat.erase("sliding_window");
  const ModelConfig three = parse(flat);
  for (int i = 0; i < 34; ++i) CHECK(three.layer_window[i] == ((i + 1) % 3 == 0 ? 0 : 4096));
  flat.erase("rope_scaling");  // Gemma 3 1B has none
  CHECK(parse(flat).rope.kind == RopeKind::kDefault);
  CHECK(parse(flat).rope.theta == 1e6);
}

TEST_CASE("config.json: Qwen's sliding windows when they are used") {
  json c = qwen();
  c["use_sliding_window"] = true;
  c["sliding_window"] = 500;
  c["max_window_layers"] = 20;
  const ModelConfig config = parse(c);
  for (int i = 0; i < 28; ++i) CHECK(config.layer_window[i] == (i >= 20 ? 500 : 0));
  CHECK(config.local_rope == config.rope);
  c["max_window_layers"] = 28;
  CHECK(parse(c).layer_window == std::vector<std::int32_t>(28, 0));
}

TEST_CASE("generation_config.json wins for the ids that end an answer") {
  const json generation = {{"eos_token_id", {151645, 151643}}, {"bos_token_id", 7}};
  const ModelConfig config = parse_model_config(qwen(), &generation, "dir/config.json");
  CHECK(config.eos_ids == std::vector<std::int32_t>{151645, 151643});
  CHECK(config.bos_id == 7);
  const json silent = {{"do_sample", true}};
  CHECK(parse_model_config(qwen(), &silent, "c").eos_ids == std::vector<std::int32_t>{151645});
  const json bad = {{"eos_token_id", {1, 152064}}};
  const std::string message = message_of([&] { parse_model_config(qwen(), &bad, "dir/config.json"); });
  CHECK(contains(message, "dir/generation_config.json: eos_token_id.1: found 152064"));

  const TempDir dir;
  dir.write("config.json", qwen().dump());
  CHECK(read_model_config(dir.path()).eos_ids == std::vector<std::int32_t>{151645});
  dir.write("generation_config.json", generation.dump());
  CHECK(read_model_config(dir.path()).eos_ids == std::vector<std::int32_t>{151645, 151643});
  dir.write("generation_config.json", "[]");
  CHECK(contains(message_of([&] { read_model_config(dir.path()); }), dir / "generation_config.json: "));
  CHECK(
      contains(message_of([&] { read_model_config(dir / "none"); }), dir / "none/config.json: cannot open"));
}

TEST_CASE("fingerprint: every field that changes the function changes it") {
  const std::uint64_t reference = parse(llama()).fingerprint();
  const std::vector<std::pair<const char*, json>> changes = {{"rms_norm_eps", 1e-6},
                                                             {"rope_theta", 1e6},
                                                             {"tie_word_embeddings", true},
                                                             {"torch_dtype", "float16"},
                                                             {"head_dim", 64},
                                                             {"vocab_size", 128257},
                                                             {"eos_token_id", 128009},
                                                             {"max_position_embeddings", 8192},
                                                             {"num_hidden_layers", 31}};
  for (const auto& [key, value] : changes) {
    json c = llama();
    c[key] = value;
    CAPTURE(key);
    CHECK(parse(c).fingerprint() != reference);
  }
  json c = llama();
  c["rope_scaling"]["factor"] = 16;
  CHECK(parse(c).fingerprint() != reference);
  c = llama();
  c["_name_or_path"] = "elsewhere";
  CHECK(parse(c).fingerprint() == reference);
}

TEST_CASE("--rope: what a run gets") {
  const ModelConfig plain = parse(qwen());
  CHECK(resolve_rope(plain, "auto", 32768).rope == plain.rope);
  CHECK(resolve_rope(plain, "auto", 32768).max_positions == 32768);
  const EffectiveRope longer = resolve_rope(plain, "auto", 129024);
  CHECK(longer.rope.kind == RopeKind::kYarn);
  CHECK(longer.rope.factor == 129024.0 / 32768);
  CHECK(longer.rope.theta == 1e6);
  CHECK(longer.rope.original_max_positions == 32768);
  CHECK(longer.max_positions == 129024);
  CHECK(contains(longer.description, "yarn, factor 3.9375 over 32768"));
  for (std::int64_t total = 32769; total < 200000; total += 997) {
    CHECK(resolve_rope(plain, "auto", total).max_positions == total);  // no rounding loses the last token
  }
  CHECK(resolve_rope(plain, "config", 129024).rope == plain.rope);
  CHECK(resolve_rope(plain, "config", 129024).max_positions == 32768);
  CHECK(resolve_rope(plain, "yarn:4", 100).rope.factor == 4);
  CHECK(resolve_rope(plain, "yarn:4", 100).max_positions == 131072);
  CHECK(resolve_rope(plain, "yarn:2.5", 100).rope.factor == 2.5);

  // A shipped YaRN config, whose max_position_embeddings is still 32768: the factor stays as written.
  json c = qwen();
  c["rope_scaling"] = {{"factor", 4.0}, {"original_max_position_embeddings", 32768}, {"type", "yarn"}};
  const ModelConfig yarn = parse(c);
  CHECK(yarn.rope.factor == 4);
  CHECK(resolve_rope(yarn, "config", 100).max_positions == 131072);
  CHECK(resolve_rope(yarn, "auto", 100).rope == yarn.rope);
  CHECK(resolve_rope(yarn, "auto", 65536).rope.factor == 2);
  c["max_position_embeddings"] = 131072;
  CHECK(resolve_rope(parse(c), "config", 100).max_positions == 131072);
  CHECK(parse(c).rope.factor == 4);

  // The base models say 131072 without scaling; a model trained on another length is left as its config says.
  c = qwen();
  c["max_position_embeddings"] = 131072;
  CHECK(resolve_rope(parse(c), "auto", 65536).rope.factor == 2);
  for (const int positions : {4096, 1010000}) {
    c["max_position_embeddings"] = positions;
    CHECK(resolve_rope(parse(c), "auto", 65536).rope.kind == RopeKind::kDefault);
    CHECK(resolve_rope(parse(c), "auto", 65536).max_positions == positions);
  }
  c["rope_scaling"] = {{"factor", 4.0}, {"original_max_position_embeddings", 256}, {"rope_type", "yarn"}};
  CHECK(resolve_rope(parse(c), "auto", 65536).rope == parse(c).rope);

  const ModelConfig llama3 = parse(llama());
  CHECK(resolve_rope(llama3, "auto", 131072).rope == llama3.rope);
  CHECK(resolve_rope(llama3, "auto", 131072).max_positions == 131072);
  CHECK(resolve_rope(llama3, "yarn:8", 131072).rope.original_max_positions == 8192);
  const ModelConfig gemma3 = parse(gemma());
  CHECK(resolve_rope(gemma3, "auto", 65536).rope == gemma3.rope);

  for (const char* option : {"", "Auto", "yarn", "yarn:", "yarn:x", "yarn:4x", "yarn:0.5", "yarn:-4",
                             "yarn:1e9", "yarn:nan", "yarn:inf", "ntk:2"}) {
    CAPTURE(option);
    const std::string message = message_of([&] { resolve_rope(plain, option, 100); }, ExitCode::kUsage);
    CHECK(contains(message, fmt::format("--rope {}:", option)));
  }
  CHECK(contains(message_of([&] { resolve_rope(gemma3, "yarn:2", 100); }, ExitCode::kUsage), "gemma3"));
}
