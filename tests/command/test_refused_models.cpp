// Every bad model directory is refused with code 3, one line that names file and field, and nothing left
// behind.
#include <doctest/doctest.h>

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/command/model_copy.hpp"
#include "tests/command/refusal.hpp"
#include "tests/command/run_command.hpp"

namespace tessera::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Spoil = std::function<void(const ModelCopy&)>;

constexpr const char* kWeights = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kQuery = "model.layers.0.self_attn.q_proj.weight";

struct BadModel {
  std::string name;
  const char* fixture;
  std::vector<std::string> says;  // the file, the field
  Spoil spoil;
};

// -- how to spoil ----------------------------------------------------------------------------------

Spoil config(std::function<void(json&)> edit) {
  return [edit](const ModelCopy& model) { model.edit_json("config.json", edit); };
}
Spoil set_config(const char* key, json value) {
  return config([key, value](json& root) { root[key] = value; });
}
Spoil without_config(const char* key) {
  return config([key](json& root) { root.erase(key); });
}
Spoil tokenizer(std::function<void(json&)> edit) {
  return [edit](const ModelCopy& model) { model.edit_json("tokenizer.json", edit); };
}
Spoil header(std::function<void(json&)> edit) {
  return [edit](const ModelCopy& model) { model.edit_header(kWeights, edit); };
}
Spoil index(std::function<void(json&)> edit) {
  return [edit](const ModelCopy& model) { model.edit_json(kIndex, edit); };
}
Spoil content(const char* file, std::string bytes) {
  return [file, bytes](const ModelCopy& model) { write_file(model / file, bytes); };
}
Spoil text(const char* file, std::function<void(std::string&)> edit) {
  return [file, edit](const ModelCopy& model) { model.edit_text(file, edit); };
}
Spoil removed(const char* file) {
  return [file](const ModelCopy& model) { REQUIRE(fs::remove(model / file)); };
}
Spoil folder(const char* file) {
  return [file](const ModelCopy& model) {
    REQUIRE(fs::remove(model / file));
    fs::create_directory(model / file);
  };
}
std::string nested(int depth) {
  return std::string(static_cast<std::size_t>(depth), '[') +
         std::string(static_cast<std::size_t>(depth), ']');
}

std::vector<BadModel> bad_weights() {
  return {
      {"no weights at all", kQwen, {kWeights}, removed(kWeights)},
      {"empty file", kQwen, {kWeights, "header length"}, content(kWeights, "")},
      {"shorter than its length field", kQwen, {kWeights, "header length"}, content(kWeights, "1234")},
      {"header cut",
       kQwen,
       {kWeights, "header length"},
       text(kWeights, [](std::string& b) { b.resize(200); })},
      {"data cut",
       kQwen,
       {kWeights, "data_offsets"},
       text(kWeights, [](std::string& b) { b.resize(b.size() - 1); })},
      {"data too long",
       kQwen,
       {kWeights, "data_offsets"},
       text(kWeights, [](std::string& b) { b += "more"; })},
      {"header length of 2^63",
       kQwen,
       {kWeights, "header length"},
       text(kWeights, [](std::string& b) { b[7] = '\x80'; })},
      {"header length over the format's limit",
       kQwen,
       {kWeights, "header length"},
       text(kWeights, [](std::string& b) { b.replace(0, 8, std::string("\x01\xe1\xf5\x05\0\0\0\0", 8)); })},
      {"header is no JSON",
       kQwen,
       {kWeights, "not valid JSON"},
       [](const ModelCopy& m) { m.edit_header_text(kWeights, [](std::string& h) { h[1] = '}'; }); }},
      {"header is a list",
       kQwen,
       {kWeights, "header"},
       [](const ModelCopy& m) { m.edit_header_text(kWeights, [](std::string& h) { h = "[]"; }); }},
      {"header nested deeply",
       kQwen,
       {kWeights, "nesting"},
       [](const ModelCopy& m) {
         m.edit_header_text(kWeights, [](std::string& h) { h = "{\"a\":" + nested(100000) + "}"; });
       }},
      {"header with invalid UTF-8",
       kQwen,
       {kWeights, "UTF-8"},
       [](const ModelCopy& m) {
         m.edit_header_text(kWeights, [](std::string& h) {
           replace_text(h, "embed_tokens",
                        "embed_\xff\xfe"
                        "kens");
         });
       }},
      {"tensor twice in one header",
       kQwen,
       {kWeights, kEmbedding, "twice"},
       [](const ModelCopy& m) {
         m.edit_header_text(kWeights, [](std::string& h) {
           h.insert(
               1, std::string("\"") + kEmbedding + R"(":{"dtype":"BF16","shape":[0],"data_offsets":[0,0]},)");
         });
       }},
      {"offsets run backwards", kQwen, {kWeights, kQuery, "data_offsets"}, header([](json& h) {
         std::swap(h[kQuery]["data_offsets"][0], h[kQuery]["data_offsets"][1]);
       })},
      {"offsets past the end", kQwen, {kWeights, kQuery, "data_offsets"}, header([](json& h) {
         h[kQuery]["data_offsets"] = {std::int64_t{1} << 40, (std::int64_t{1} << 40) + 24576};
       })},
      {"negative offset", kQwen, {kWeights, kQuery, "data_offsets"}, header([](json& h) {
         h[kQuery]["data_offsets"][0] = -2;
       })},
      {"offsets overlap", kQwen, {kWeights, "data_offsets", "overlap"}, header([](json& h) {
         h[kQuery]["data_offsets"][0] = h[kQuery]["data_offsets"][0].get<int>() - 2;
         h[kQuery]["data_offsets"][1] = h[kQuery]["data_offsets"][1].get<int>() - 2;
       })},
      {"offsets and shape disagree",
       kQwen,
       {kWeights, kQuery, "data_offsets", "24576", "24768"},
       header([](json& h) {
         h[kQuery]["shape"] = {129, 96};
       })},
      {"negative size", kQwen, {kWeights, kQuery, "shape"}, header([](json& h) {
         h[kQuery]["shape"][0] = -128;
       })},
      {"sizes whose product overflows", kQwen, {kWeights, kQuery, "shape"}, header([](json& h) {
         h[kQuery]["shape"] = {std::int64_t{1} << 40, std::int64_t{1} << 40};
       })},
      {"unknown dtype", kQwen, {kWeights, kQuery, "dtype", "BF17"}, header([](json& h) {
         h[kQuery]["dtype"] = "BF17";
       })},
      {"dtype that cannot be computed with", kQwen, {kWeights, kQuery, "I16"}, header([](json& h) {
         h[kQuery]["dtype"] = "I16";
       })},
      {"tensor without a dtype", kQwen, {kWeights, kQuery, "dtype"}, header([](json& h) {
         h[kQuery].erase("dtype");
       })},
      {"missing tensor", kQwen, {kQwen, kQuery, "missing", "[128, 96]"}, header([](json& h) {
         h["model.rotary_emb.inv_freq"] = h[kQuery];  // ignored where it is
         h.erase(kQuery);
       })},
      {"unknown tensor", kQwen, {kQwen, "model.layers.0.self_attn.sinks"}, header([](json& h) {
         h["model.layers.0.self_attn.sinks"] = {{"dtype", "BF16"}, {"shape", {0}}, {"data_offsets", {0, 0}}};
       })},
      {"tensor of a layer too many",
       kQwen,
       {kQwen, "model.layers.2.", "2 layers"},
       [](const ModelCopy& m) { m.edit_json("config.json", [](json& c) { c["num_hidden_layers"] = 2; }); }},
      {"mis-shaped tensor", kQwen, {kWeights, kQuery, "[96, 128]", "[128, 96]"}, header([](json& h) {
         h[kQuery]["shape"] = {96, 128};
       })},
      {"norm of two dimensions",
       kQwen,
       {kWeights, "model.norm.weight", "[1, 96]", "[96]"},
       header([](json& h) {
         h["model.norm.weight"]["shape"] = {1, 96};
       })},
      {"no untied head",
       kQwen,
       {kQwen, "lm_head.weight", "missing"},
       set_config("tie_word_embeddings", false)},
      {"index outside its folder", kSharded, {kIndex, "weight_map", kQuery, "../"}, index([](json& i) {
         i["weight_map"][kQuery] = "../model.safetensors";
       })},
      {"index with an absolute path",
       kSharded,
       {kIndex, "weight_map", kQuery, "/etc/passwd"},
       index([](json& i) { i["weight_map"][kQuery] = "/etc/passwd"; })},
      {"index names a file that is not there",
       kSharded,
       {kIndex, "weight_map", "model-00009-of-00009"},
       index([](json& i) { i["weight_map"][kQuery] = "model-00009-of-00009.safetensors"; })},
      {"index names a number", kSharded, {kIndex, "weight_map", kQuery}, index([](json& i) {
         i["weight_map"][kQuery] = 3;
       })},
      {"index without a map", kSharded, {kIndex, "weight_map"}, index([](json& i) {
         i.erase("weight_map");
       })},
      {"index with an empty map", kSharded, {kIndex, "weight_map"}, index([](json& i) {
         i["weight_map"] = json::object();
       })},
      {"index places a tensor in the wrong shard",
       kSharded,
       {"model-00003-of-00003.safetensors", kQuery},
       index([](json& i) { i["weight_map"][kQuery] = "model-00003-of-00003.safetensors"; })},
      {"index is no JSON", kSharded, {kIndex, "not valid JSON"}, content(kIndex, "weights")},
      {"index nested deeply", kSharded, {kIndex, "nesting"}, content(kIndex, nested(100000))},
      {"shard is missing",
       kSharded,
       {kIndex, "model-00002-of-00003"},
       removed("model-00002-of-00003.safetensors")},
      {"tensor in two shards",
       kSharded,
       {"model-00002-of-00003.safetensors", "also in"},
       [](const ModelCopy& m) {
         fs::copy_file(m / "model-00001-of-00003.safetensors", m / "model-00002-of-00003.safetensors",
                       fs::copy_options::overwrite_existing);
       }},
  };
}

std::vector<BadModel> bad_configs() {
  const char* file = "config.json";
  return {
      {"no config", kQwen, {file}, removed(file)},
      {"config is a folder", kQwen, {file}, folder(file)},
      {"config is empty", kQwen, {file, "not valid JSON"}, content(file, "")},
      {"config is no JSON", kQwen, {file, "not valid JSON"}, content(file, "model_type: qwen2\n")},
      {"config is cut",
       kQwen,
       {file, "not valid JSON"},
       text(file, [](std::string& b) { b.resize(b.size() / 2); })},
      {"config is a list", kQwen, {file}, content(file, "[1, 2]")},
      {"config nested deeply", kQwen, {file, "nesting"}, content(file, nested(100000))},
      {"config with invalid UTF-8",
       kQwen,
       {file, "UTF-8"},
       text(file, [](std::string& b) { replace_text(b, "\"silu\"", "\"si\xc3\x28\""); })},
      {"config of 8 MiB",
       kQwen,
       {file, "bytes"},
       text(file, [](std::string& b) { b += std::string(8 << 20, ' '); })},
      {"key twice",
       kQwen,
       {file, "hidden_size", "twice"},
       text(file,
            [](std::string& b) {
              replace_text(b, "\"hidden_size\"", "\"hidden_size\": 96, \"hidden_size\"");
            })},
      {"unknown model_type", kQwen, {file, "model_type", "mamba"}, set_config("model_type", "mamba")},
      {"no model_type", kQwen, {file, "model_type"}, without_config("model_type")},
      {"zero heads", kQwen, {file, "num_attention_heads", "0"}, set_config("num_attention_heads", 0)},
      {"zero KV heads", kQwen, {file, "num_key_value_heads", "0"}, set_config("num_key_value_heads", 0)},
      {"heads that KV heads do not divide",
       kQwen,
       {file, "num_key_value_heads", "3", "8"},
       set_config("num_key_value_heads", 3)},
      {"more KV heads than heads",
       kQwen,
       {file, "num_key_value_heads", "16"},
       set_config("num_key_value_heads", 16)},
      {"hidden size that heads do not divide",
       kQwen,
       {file, "num_attention_heads", "96"},
       config([](json& c) {
         c.erase("head_dim");
         c["num_attention_heads"] = 10;
         c["num_key_value_heads"] = 2;
       })},
      {"odd head_dim", kQwen, {file, "head_dim", "15"}, set_config("head_dim", 15)},
      {"absurd layers",
       kQwen,
       {file, "num_hidden_layers", "1000000000"},
       set_config("num_hidden_layers", 1000000000)},
      {"absurd hidden size", kQwen, {file, "hidden_size"}, set_config("hidden_size", std::int64_t{1} << 62)},
      {"absurd vocabulary", kQwen, {file, "vocab_size"}, set_config("vocab_size", std::int64_t{1} << 40)},
      {"size beyond 64 bits", kQwen, {file, "intermediate_size"}, set_config("intermediate_size", 1e30)},
      {"negative size", kQwen, {file, "intermediate_size", "-160"}, set_config("intermediate_size", -160)},
      {"fractional size", kQwen, {file, "hidden_size", "96.5"}, set_config("hidden_size", 96.5)},
      {"size as text", kQwen, {file, "hidden_size", "96"}, set_config("hidden_size", "96")},
      {"flag as text", kQwen, {file, "tie_word_embeddings"}, set_config("tie_word_embeddings", "yes")},
      {"no hidden size", kQwen, {file, "hidden_size", "missing"}, without_config("hidden_size")},
      {"negative epsilon", kQwen, {file, "rms_norm_eps"}, set_config("rms_norm_eps", -1e-6)},
      {"zero theta", kQwen, {file, "rope_theta"}, set_config("rope_theta", 0)},
      {"unknown activation", kQwen, {file, "hidden_act", "relu"}, set_config("hidden_act", "relu")},
      {"unknown dtype", kQwen, {file, "dtype", "int4"}, set_config("torch_dtype", "int4")},
      {"quantised", kQwen, {file, "quantization_config"}, set_config("quantization_config", {{"bits", 4}})},
      {"stop id outside the vocabulary",
       kQwen,
       {"generation_config.json", "eos_token_id", "496"},
       [](const ModelCopy& m) {
         m.edit_json("generation_config.json", [](json& g) { g["eos_token_id"] = 496; });
       }},
      {"unknown rope", kLlama, {file, "rope", "spiral"}, config([](json& c) {
         c["rope_scaling"]["rope_type"] = "spiral";
       })},
      {"negative rope factor", kLlama, {file, "factor"}, config([](json& c) {
         c["rope_scaling"]["factor"] = -8;
       })},
      {"llama3 rope without its frequencies", kLlama, {file, "low_freq_factor"}, config([](json& c) {
         c["rope_scaling"].erase("low_freq_factor");
       })},
      {"Gemma without its text model", kGemma, {file, "text_config"}, without_config("text_config")},
      {"Gemma with soft caps", kGemma, {file, "attn_logit_softcapping"}, config([](json& c) {
         c["text_config"]["attn_logit_softcapping"] = 50.0;
       })},
      {"layer types of another length", kGemma, {file, "layer_types"}, config([](json& c) {
         c["text_config"]["layer_types"] = {"full_attention"};
       })},
  };
}

std::vector<BadModel> bad_tokenizers() {
  const char* file = "tokenizer.json";
  return {
      {"no tokenizer", kQwen, {file}, removed(file)},
      {"tokenizer is a folder", kQwen, {file}, folder(file)},
      {"tokenizer is no JSON", kQwen, {file, "not valid JSON"}, content(file, "#version: 0.2")},
      {"tokenizer nested deeply", kQwen, {file, "nesting"}, content(file, nested(100000))},
      {"tokenizer with invalid UTF-8",
       kQwen,
       {file, "UTF-8"},
       text(file, [](std::string& b) { replace_text(b, "NFC", "NF\xff"); })},
      {"unknown normalizer", kQwen, {file, "normalizer.type", "Lowercase"}, tokenizer([](json& t) {
         t["normalizer"]["type"] = "Lowercase";
       })},
      {"unknown pre-tokenizer", kQwen, {file, "pre_tokenizer", "Whitespace"}, tokenizer([](json& t) {
         t["pre_tokenizer"]["pretokenizers"][0]["type"] = "Whitespace";
       })},
      {"unknown decoder", kQwen, {file, "decoder.type", "WordPiece"}, tokenizer([](json& t) {
         t["decoder"]["type"] = "WordPiece";
       })},
      {"unknown post-processor",
       kQwen,
       {file, "post_processor.type", "BertProcessing"},
       tokenizer([](json& t) {
         t["post_processor"] = {{"type", "BertProcessing"}};
       })},
      {"unknown model", kQwen, {file, "model.type", "Unigram"}, tokenizer([](json& t) {
         t["model"]["type"] = "Unigram";
       })},
      {"unknown field", kQwen, {file, "normalizer.strength"}, tokenizer([](json& t) {
         t["normalizer"]["strength"] = 2;
       })},
      {"bad expression", kQwen, {file, "pretokenizers.0", "Regex"}, tokenizer([](json& t) {
         t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(\\p{L}+";
       })},
      {"no model", kQwen, {file, "model"}, tokenizer([](json& t) { t.erase("model"); })},
      {"empty vocabulary", kQwen, {file, "model.vocab"}, tokenizer([](json& t) {
         t["model"]["vocab"] = json::object();
       })},
      {"negative id", kQwen, {file, "model.vocab", "-1"}, tokenizer([](json& t) {
         t["model"]["vocab"]["he"] = -1;
       })},
      {"absurd id", kQwen, {file, "model.vocab", "2000000000"}, tokenizer([](json& t) {
         t["model"]["vocab"]["he"] = 2000000000;
       })},
      {"id as text", kQwen, {file, "model.vocab"}, tokenizer([](json& t) {
         t["model"]["vocab"]["he"] = "5";
       })},
      {"id of two tokens", kQwen, {file, "model.vocab", "id 1,"}, tokenizer([](json& t) {
         t["model"]["vocab"]["he"] = 1;
       })},
      {"merge of unknown tokens", kQwen, {file, "model.merges.0"}, tokenizer([](json& t) {
         t["model"]["merges"][0] = "unheard of";
       })},
      {"merge of three", kQwen, {file, "model.merges.0"}, tokenizer([](json& t) {
         t["model"]["merges"][0] = "h e e";
       })},
      {"added token with an id that is taken", kQwen, {file, "added_tokens.0.id"}, tokenizer([](json& t) {
         t["added_tokens"][0]["id"] = 3;
       })},
      {"larger than the model", kQwen, {file, "900", "vocab_size", "496"}, tokenizer([](json& t) {
         t["added_tokens"][0]["id"] = 900;
       })},
  };
}

void check_bad_models(const std::vector<BadModel>& cases) {
  for (const BadModel& bad : cases) {
    CAPTURE(bad.name);
    const TempFolder folder;
    const ModelCopy model(bad.fixture, folder.path());
    fs::create_directory(folder / "results");
    bad.spoil(model);
    check_refused(run_command(tessera(eval(model.path(), folder / "results/out.h5"))), 3, bad.says);
    CHECK(is_empty(folder / "results"));
  }
}

}  // namespace

TEST_CASE("the models that the refusals spoil are answered as they are") {
  for (const char* fixture : {kQwen, kSharded, kGemma, kLlama}) {
    CAPTURE(fixture);
    const TempFolder folder;
    const ModelCopy model(fixture, folder.path());
    const CommandResult result =
        run_command(tessera(with(eval(model.path(), folder / "out.h5"), "--length", "1800")));
    CAPTURE(result.err);
    CHECK(result.code == 0);
    CHECK(fs::exists(folder / "out.h5"));
    CHECK(fs::exists(folder / "out.h5.journal"));
  }
}

TEST_CASE("bad weights are refused") {
  check_bad_models(bad_weights());
}
TEST_CASE("bad model configurations are refused") {
  check_bad_models(bad_configs());
}
TEST_CASE("bad tokenizers are refused") {
  check_bad_models(bad_tokenizers());
}

}  // namespace tessera::test
