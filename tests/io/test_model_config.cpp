// config.json: the nine models of the study by their published numbers, and every way of writing a field.
#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "io/model_config.hpp"
#include "tests/io/checkpoint_files.hpp"
#include "tests/io/published_models.hpp"

using namespace tessera;
using namespace tessera::test;
using nlohmann::json;

TEST_CASE("the nine models of the study: parameters and KV bytes a token") {
  for (const Published& model : published()) {
    CAPTURE(model.name);
    const ModelConfig config = parse_model(model.text);
    CHECK(config.parameter_count() == model.parameters);
    CHECK(config.layers * config.kv_heads * config.head_dim * 2 * 2 == model.kv_bytes);
    CHECK(config.dtype == DType::kBF16);
    CHECK(static_cast<std::int64_t>(config.layer_window.size()) == config.layers);
  }
}

TEST_CASE("Qwen: a row of values") {
  const ModelConfig config = parse_model(qwen());
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
  const ModelConfig config = parse_model(llama());
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
  const ModelConfig config = parse_model(gemma());
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
  CHECK(parse_model(published()[6].text).embedding_scale == 50.5f);
  CHECK(parse_model(published()[7].text).embedding_scale == 62.0f);
  CHECK(parse_model(published()[8].text).embedding_scale == 73.5f);
  CHECK(parse_model(published()[8].text).attention_scale == doctest::Approx(1 / std::sqrt(168.0)));
  json single = gemma();
  single["torch_dtype"] = "float32";
  CHECK(parse_model(single).embedding_scale == std::sqrt(2560.0f));
}

TEST_CASE("config.json: each way of writing the same model reads the same") {
  const std::uint64_t reference = parse_model(qwen()).fingerprint();
  const auto same = [&](const char* what, const json& config) {
    CAPTURE(what);
    CHECK(parse_model(config).fingerprint() == reference);
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
  CHECK(parse_model(yarn).fingerprint() != reference);
  CHECK(parse_model(yarn).fingerprint() == parse_model(old).fingerprint());
  old["rope_scaling"].erase("original_max_position_embeddings");  // then it is max_position_embeddings
  CHECK(parse_model(yarn).fingerprint() == parse_model(old).fingerprint());
  twice["rope_parameters"] = yarn["rope_scaling"];
  twice["rope_scaling"] = yarn["rope_scaling"];
  CHECK(parse_model(yarn).fingerprint() == parse_model(twice).fingerprint());

  json plain = json::parse(
      R"({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 96, "vocab_size": 300, "max_position_embeddings": 128})");
  const ModelConfig defaults = parse_model(plain);  // of the class
  CHECK(defaults.kv_heads == 4);
  CHECK(defaults.norm_eps == 1e-6);
  CHECK(defaults.rope.theta == 10000);
  CHECK(defaults.dtype == DType::kF32);
  CHECK_FALSE(defaults.tied_embeddings);
  CHECK(defaults.eos_ids.empty());
  CHECK_FALSE(defaults.bos_id.has_value());
  plain["head_dim"] = 10;  // not hidden / heads
  plain["tie_word_embeddings"] = true;
  CHECK(parse_model(plain).head_dim == 10);
  CHECK(parse_model(plain).tied_embeddings);
}

TEST_CASE("config.json: Gemma nested or flat, ropes flat or per type, windows by list, pattern or default") {
  const std::uint64_t reference = parse_model(gemma()).fingerprint();
  const auto same = [&](const char* what, const json& config) {
    CAPTURE(what);
    CHECK(parse_model(config).fingerprint() == reference);
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
  CHECK(parse_model(flat).layer_window[0] == 0);
  CHECK(parse_model(flat).layer_window[1] == 1024);

  flat.erase("layer_types");
  flat.erase("sliding_window");
  const ModelConfig three = parse_model(flat);
  for (int i = 0; i < 34; ++i) CHECK(three.layer_window[i] == ((i + 1) % 3 == 0 ? 0 : 4096));
  flat.erase("rope_scaling");  // Gemma 3 1B has none
  CHECK(parse_model(flat).rope.kind == RopeKind::kDefault);
  CHECK(parse_model(flat).rope.theta == 1e6);
}

TEST_CASE("config.json: Qwen's sliding windows when they are used") {
  json c = qwen();
  c["use_sliding_window"] = true;
  c["sliding_window"] = 500;
  c["max_window_layers"] = 20;
  const ModelConfig config = parse_model(c);
  for (int i = 0; i < 28; ++i) CHECK(config.layer_window[i] == (i >= 20 ? 500 : 0));
  CHECK(config.local_rope == config.rope);
  c["max_window_layers"] = 28;
  CHECK(parse_model(c).layer_window == std::vector<std::int32_t>(28, 0));
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
  const std::uint64_t reference = parse_model(llama()).fingerprint();
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
    CHECK(parse_model(c).fingerprint() != reference);
  }
  json c = llama();
  c["rope_scaling"]["factor"] = 16;
  CHECK(parse_model(c).fingerprint() != reference);
  c = llama();
  c["_name_or_path"] = "elsewhere";
  CHECK(parse_model(c).fingerprint() == reference);
}
