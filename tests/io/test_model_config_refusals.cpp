// What config.json must not say: each case is one edit of a good file, as a JSON merge patch (RFC 7396).
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "io/json.hpp"
#include "io/model_config.hpp"
#include "runtime/core/random.hpp"
#include "tests/io/checkpoint_files.hpp"

using namespace tessera;
using namespace tessera::test;
using nlohmann::json;

namespace {

json qwen() {
  return json::parse(
      R"({"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 300, "max_position_embeddings": 128,
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": true,
    "torch_dtype": "float32", "use_sliding_window": false, "sliding_window": 32, "max_window_layers": 1,
    "eos_token_id": [1, 2]})");
}
json llama() {
  json c = qwen();
  c["model_type"] = "llama";
  c["attention_bias"] = false;
  c["rope_scaling"] = json::parse(R"({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32})");
  return c;
}
json gemma() {
  return json::parse(R"({"model_type": "gemma3", "torch_dtype": "float32", "eos_token_id": [1, 106],
    "text_config": {"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 7, "intermediate_size": 96,
      "head_dim": 16, "vocab_size": 300, "sliding_window": 32,
      "rope_scaling": {"rope_type": "linear", "factor": 8.0}}})");
}

struct Case {
  const char* patch;
  const char* field;
  const char* value = "";
};

void check_refused(const json& good, const std::vector<Case>& cases) {
  parse_model_config(good, nullptr, "m/config.json");  // is good
  for (const Case& c : cases) {
    CAPTURE(c.patch);
    json bad = good;
    bad.merge_patch(json::parse(c.patch));
    const std::string message = message_of([&] { parse_model_config(bad, nullptr, "m/config.json"); });
    CAPTURE(message);
    CHECK(message.rfind(std::string("m/config.json: ") + c.field + ": ", 0) == 0);
    CHECK(contains(message, c.value));
  }
}

}  // namespace

TEST_CASE("config.json: sizes that cannot be") {
  check_refused(
      qwen(),
      {
          {R"({"hidden_size": null})", "hidden_size", "missing"},
          {R"({"hidden_size": 0})", "hidden_size", "0"},
          {R"({"hidden_size": -64})", "hidden_size", "-64"},
          {R"({"hidden_size": 64.0})", "hidden_size", "64.0"},
          {R"({"hidden_size": "64"})", "hidden_size", "\"64\""},
          {R"({"hidden_size": [64]})", "hidden_size", "array"},
          {R"({"hidden_size": 1048577})", "hidden_size", "1048577"},
          {R"({"hidden_size": 18446744073709551615})", "hidden_size", "18446744073709551615"},
          {R"({"hidden_size": 66})", "num_attention_heads", "66"},
          {R"({"num_hidden_layers": 0})", "num_hidden_layers", "0"},
          {R"({"num_hidden_layers": 1000000})", "num_hidden_layers", "1024"},
          {R"({"num_hidden_layers": true})", "num_hidden_layers", "true"},
          {R"({"num_attention_heads": 0})", "num_attention_heads", "0"},
          {R"({"num_attention_heads": 64})", "num_attention_heads", "head_dim"},
          {R"({"num_key_value_heads": 0})", "num_key_value_heads", "0"},
          {R"({"num_key_value_heads": 3})", "num_key_value_heads", "divisor of num_attention_heads, 4"},
          {R"({"num_key_value_heads": 8})", "num_key_value_heads", "8"},
          {R"({"head_dim": 0})", "head_dim", "0"},
          {R"({"head_dim": 15})", "head_dim", "15"},
          {R"({"head_dim": 514})", "head_dim", "514"},
          {R"({"hidden_size": 4096})", "num_attention_heads", "1024"},
          {R"({"intermediate_size": 0})", "intermediate_size", "0"},
          {R"({"intermediate_size": 1e3})", "intermediate_size", "1000.0"},
          {R"({"vocab_size": 16777217})", "vocab_size", "16777217"},
          {R"({"vocab_size": 0})", "vocab_size", "0"},
          {R"({"max_position_embeddings": 0})", "max_position_embeddings", "0"},
          {R"({"max_position_embeddings": null})", "max_position_embeddings", "missing"},
          {R"({"rms_norm_eps": 0})", "rms_norm_eps", "0"},
          {R"({"rms_norm_eps": -1e-6})", "rms_norm_eps", "-1e-06"},
          {R"({"rms_norm_eps": "1e-6"})", "rms_norm_eps", "\"1e-6\""},
          {R"({"tie_word_embeddings": 1})", "tie_word_embeddings", "1"},
          {R"({"eos_token_id": 300})", "eos_token_id", "300"},
          {R"({"eos_token_id": [1, -1]})", "eos_token_id.1", "-1"},
          {R"({"eos_token_id": "</s>"})", "eos_token_id", "</s>"},
          {R"({"bos_token_id": 1.5})", "bos_token_id", "1.5"},
      });
}

TEST_CASE("config.json: what would change results is refused, not ignored") {
  check_refused(
      qwen(),
      {
          {R"({"model_type": null})", "model_type", "missing"},
          {R"({"model_type": "mamba"})", "model_type", "one of qwen2, llama, gemma3, gemma3_text"},
          {R"({"model_type": "qwen2\nmoe"})", "model_type", "qwen2\\nmoe"},
          {R"({"model_type": 2})", "model_type", "2"},
          {R"({"hidden_act": "gelu"})", "hidden_act", "gelu"},
          {R"({"torch_dtype": "float64"})", "torch_dtype", "float64"},
          {R"({"torch_dtype": 32})", "torch_dtype", "32"},
          {R"({"dtype": "bfloat16"})", "torch_dtype", "the same as dtype"},
          {R"({"partial_rotary_factor": 0.5})", "partial_rotary_factor", "0.5"},
          {R"({"quantization_config": {"quant_method": "gptq"}})", "quantization_config", "not supported"},
          {R"({"use_sliding_window": true, "sliding_window": null})", "sliding_window", "missing"},
          {R"({"use_sliding_window": true, "sliding_window": 0})", "sliding_window", "0"},
          {R"({"use_sliding_window": true, "max_window_layers": null})", "max_window_layers", "missing"},
          {R"({"use_sliding_window": "no"})", "use_sliding_window", "no"},
          {R"({"layer_types": ["full_attention"]})", "layer_types", "3 entries"},
          {R"({"layer_types": "full_attention"})", "layer_types", "full_attention"},
          {R"({"layer_types": ["full_attention", "chunked_attention", "full_attention"]})", "layer_types.1",
           "chunked"},
          {R"({"layer_types": ["full_attention", "sliding_attention", "full_attention"]})", "layer_types",
           "off"},
      });
  check_refused(llama(), {
                             {R"({"attention_bias": true})", "attention_bias", "true"},
                             {R"({"mlp_bias": true})", "mlp_bias", "true"},
                             {R"({"layer_types": ["full_attention", "sliding_attention", "full_attention"]})",
                              "layer_types", "off"},
                         });
  check_refused(
      gemma(),
      {
          {R"({"text_config": null})", "text_config", "missing"},
          {R"({"text_config": 1})", "text_config", "1"},
          {R"({"text_config": {"model_type": "gemma2"}})", "text_config.model_type", "gemma2"},
          {R"({"text_config": {"hidden_size": 0}})", "text_config.hidden_size", "0"},
          {R"({"text_config": {"num_key_value_heads": 3}})", "text_config.num_key_value_heads", "divisor"},
          {R"({"text_config": {"attention_bias": true}})", "text_config.attention_bias", "true"},
          {R"({"text_config": {"attn_logit_softcapping": 50.0}})", "text_config.attn_logit_softcapping",
           "50.0"},
          {R"({"text_config": {"final_logit_softcapping": 30.0}})", "text_config.final_logit_softcapping",
           "30.0"},
          {R"({"text_config": {"use_bidirectional_attention": true}})",
           "text_config.use_bidirectional_attention", "true"},
          {R"({"text_config": {"hidden_activation": "silu"}})", "text_config.hidden_activation", "silu"},
          {R"({"text_config": {"query_pre_attn_scalar": 0}})", "text_config.query_pre_attn_scalar", "0"},
          {R"({"text_config": {"sliding_window": 0}})", "text_config.sliding_window", "0"},
          {R"({"text_config": {"sliding_window_pattern": 0}})", "text_config.sliding_window_pattern", "0"},
          {R"({"text_config": {"torch_dtype": "bfloat16"}})", "text_config.torch_dtype",
           "the same as torch_dtype"},
          {R"({"text_config": {"tie_word_embeddings": false}, "tie_word_embeddings": true})",
           "text_config.tie_word_embeddings", "false"},
          {R"({"quantization_config": {"bits": 4}})", "quantization_config", "not supported"},
      });
}

TEST_CASE("config.json: ropes that cannot be, or say two things") {
  check_refused(
      qwen(),
      {
          {R"({"rope_theta": 0})", "rope_theta", "0"},
          {R"({"rope_theta": 1})", "rope_theta", "1"},
          {R"({"rope_theta": "1e6"})", "rope_theta", "1e6"},
          {R"({"rope_scaling": []})", "rope_scaling", "array"},
          {R"({"rope_scaling": {"rope_type": "dynamic", "factor": 2}})", "rope_scaling.rope_type", "dynamic"},
          {R"({"rope_scaling": {"type": "longrope", "factor": 2}})", "rope_scaling.type", "longrope"},
          {R"({"rope_scaling": {"rope_type": 1}})", "rope_scaling.rope_type", "1"},
          {R"({"rope_scaling": {"type": "mrope", "rope_type": "default"}})", "rope_scaling.type", "mrope"},
          {R"({"rope_scaling": {"rope_type": "linear"}})", "rope_scaling.factor", "missing"},
          {R"({"rope_scaling": {"rope_type": "linear", "factor": 0.5}})", "rope_scaling.factor", "0.5"},
          {R"({"rope_scaling": {"rope_type": "yarn", "factor": 1e9}})", "rope_scaling.factor",
           "1000000000.0"},
          {R"({"rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 0}})",
           "rope_scaling.original_max_position_embeddings", "0"},
          {R"({"rope_scaling": {"rope_type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 32}})",
           "rope_scaling.beta_slow", "32"},
          {R"({"rope_scaling": {"rope_type": "yarn", "factor": 4, "attention_factor": 0}})",
           "rope_scaling.attention_factor", "0"},
          {R"({"rope_scaling": {"rope_type": "yarn", "factor": 4, "truncate": 1}})", "rope_scaling.truncate",
           "1"},
          {R"({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}})",
           "rope_scaling.partial_rotary_factor", "0.5"},
          {R"({"rope_scaling": {"rope_type": "default", "mrope_section": [1]}})",
           "rope_scaling.\"mrope_section\"", "not supported"},
          {R"({"rope_parameters": {"rope_theta": 5000.0}})", "rope_theta", "5000.0"},
          {R"({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "linear", "factor": 2}})",
           "rope_scaling", "the same as rope_parameters"},
      });
  check_refused(llama(), {
                             {R"({"rope_scaling": {"factor": null}})", "rope_scaling.factor", "missing"},
                             {R"({"rope_scaling": {"low_freq_factor": null}})",
                              "rope_scaling.low_freq_factor", "missing"},
                             {R"({"rope_scaling": {"high_freq_factor": 1.0}})",
                              "rope_scaling.high_freq_factor", "low_freq_factor, 1.0"},
                             {R"({"rope_scaling": {"original_max_position_embeddings": null}})",
                              "rope_scaling.original_max_position_embeddings", "missing"},
                         });
  check_refused(
      gemma(),
      {
          {R"({"text_config": {"rope_local_base_freq": -1}})", "text_config.rope_local_base_freq", "-1"},
          {R"({"text_config": {"rope_parameters": {"rope_type": "default"}}})",
           "text_config.rope_parameters.\"rope_type\"", "full_attention and sliding_attention"},
          {R"({"text_config": {"rope_parameters": {"full_attention": {"rope_type": "default"}}}})",
           "text_config.rope_scaling", "the same as"},
          {R"({"text_config": {"rope_parameters": {"sliding_attention": {"rope_type": "?"}}}})",
           "text_config.rope_parameters.sliding_attention.rope_type", "?"},
      });
}

TEST_CASE("config.json: not an object, not JSON, not UTF-8, too deep, not there") {
  const TempDir dir;
  const std::vector<std::pair<std::string, const char*>> cases = {
      {"", "not valid JSON"},
      {"[]", "object"},
      {"null", "object"},
      {"{\"model_type\": \"\xc0\"}", "not valid"},
      {std::string(5000, '['), "nesting"},
      {"{\"model_type\": 1e999}", "not valid JSON"},
      {"{\"model_type\":\"llama\",\"model_type\":\"llama\"}", "twice"}};
  for (const auto& [text, part] : cases) {
    CAPTURE(text);
    dir.write("config.json", text);
    const std::string message = message_of([&] { read_model_config(dir.path()); });
    CAPTURE(message);
    CHECK(message.rfind(dir / "config.json: ", 0) == 0);
    CHECK(contains(message, part));
  }
}

TEST_CASE("config.json: a mutated file either is a sound model or an input error") {
  const std::vector<std::string> good = {qwen().dump(), llama().dump(), gemma().dump()};
  const std::string alphabet = "{}[]\",:0123456789-.eE \\untrfalsy\xff\n";
  CounterRng rng(20240608, stream_of("config mutations"));
  int parsed = 0;
  std::set<std::string> refusals;
  for (int round = 0; round < 3000; ++round) {
    std::string text = good[rng.below(good.size())];
    const std::uint64_t edits = 1 + rng.below(3);
    for (std::uint64_t e = 0; e < edits; ++e) {
      const std::size_t at = rng.below(text.size());
      switch (rng.below(4)) {
        case 0:
          text[at] = alphabet[rng.below(alphabet.size())];
          break;
        case 1:
          text.insert(at, 1, alphabet[rng.below(alphabet.size())]);
          break;
        case 2:
          text.erase(at, 1 + rng.below(3));
          break;
        case 3:  // a digit for a digit: stays JSON, and reaches the checks of values
          if (const auto digit = text.find_first_of("0123456789", at); digit != std::string::npos) {
            text.replace(digit, 1, std::to_string(rng.below(2000)));
          }
          break;
      }
    }
    try {
      const ModelConfig model =
          parse_model_config(parse_json(text, "m/config.json"), nullptr, "m/config.json");
      ++parsed;
      REQUIRE(model.heads % model.kv_heads == 0);
      REQUIRE(model.head_dim % 2 == 0);
      REQUIRE(model.head_dim <= 512);
      REQUIRE(static_cast<std::int64_t>(model.layer_window.size()) == model.layers);
      REQUIRE(model.parameter_count() > 0);
      for (const RopeConfig* rope : {&model.rope, &model.local_rope}) {
        for (const double inverse : rope_frequencies(*rope, model.head_dim).inverse) {
          REQUIRE((inverse > 0 && inverse <= 1));
        }
      }
    } catch (const InputError& error) {
      const std::string message = error.what();
      REQUIRE(message.rfind("m/config.json: ", 0) == 0);
      REQUIRE(message.find('\n') == std::string::npos);
      refusals.insert(message);
    }
  }
  CHECK(parsed > 100);
  CHECK(refusals.size() > 200);
}
