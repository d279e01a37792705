// Files that must be refused, each with one line that names the file and the field.
#include <doctest/doctest.h>

#include <functional>

#include "runtime/core/error.hpp"
#include "tests/io/small_tokenizer.hpp"

using namespace tessera;
using namespace tessera::test;
using nlohmann::json;

namespace {

std::string error_of(const std::string& text) {
  try {
    Tokenizer::parse(text, "tokenizer.json");
  } catch (const InputError& error) {
    return error.what();
  }
  return "(no error)";
}

struct Case {
  const char* message;
  std::function<void(json&)> spoil;  // of a good Gemma-style file
};

json split_with(const json& pattern) {
  return {{"type", "Split"}, {"pattern", pattern}, {"behavior", "Isolated"}, {"invert", false}};
}

}  // namespace

TEST_CASE("tokenizer: malformed files are refused with file and field") {
  REQUIRE(error_of(gemma_style().dump()) == "(no error)");
  const Case cases[] = {
      {"extra: unknown field with the value 1", [](json& f) { f["extra"] = 1; }},
      {"version: found \"2.0\", expected \"1.0\"", [](json& f) { f["version"] = "2.0"; }},
      {"model: the field is missing", [](json& f) { f.erase("model"); }},
      {"decoder: the field is missing", [](json& f) { f.erase("decoder"); }},
      {"decoder: found null, expected an object", [](json& f) { f["decoder"] = nullptr; }},
      {"normalizer.type: found \"Lowercase\", expected one of NFC",
       [](json& f) {
         f["normalizer"] = {{"type", "Lowercase"}};
       }},
      {"normalizer: found 3, expected an object with a type", [](json& f) { f["normalizer"] = 3; }},
      {"normalizer.type: the field is missing", [](json& f) { f["normalizer"] = json::object(); }},
      {"normalizer.type: found 7, expected a string",
       [](json& f) {
         f["normalizer"] = {{"type", 7}};
       }},
      {"normalizer.form: unknown field",
       [](json& f) {
         f["normalizer"] = {{"type", "NFC"}, {"form", "x"}};
       }},
      {"normalizer.pattern: found \" \", expected an object",
       [](json& f) { f["normalizer"]["pattern"] = " "; }},
      {"normalizer.pattern.String: found an empty string",
       [](json& f) { f["normalizer"]["pattern"]["String"] = ""; }},
      {"normalizer.normalizers.1.type: found \"Bert\"",
       [](json& f) {
         f["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}, {{"type", "Bert"}}}}};
       }},
      {"pre_tokenizer.type: found \"Metaspace\"",
       [](json& f) {
         f["pre_tokenizer"] = {{"type", "Metaspace"}};
       }},
      {"pre_tokenizer.behavior: found \"Sideways\"",
       [](json& f) { f["pre_tokenizer"]["behavior"] = "Sideways"; }},
      {"pre_tokenizer.invert: found 1, expected true or false",
       [](json& f) { f["pre_tokenizer"]["invert"] = 1; }},
      {"pre_tokenizer.pattern.Regex: the regular expression does not compile",
       [](json& f) {
         f["pre_tokenizer"] = split_with({{"Regex", "(a"}});
       }},
      {"pre_tokenizer.pattern.Regex: found 0 bytes",
       [](json& f) {
         f["pre_tokenizer"] = split_with({{"Regex", ""}});
       }},
      {"pre_tokenizer.pattern.Regex: found 70000 bytes",
       [](json& f) {
         f["pre_tokenizer"] = split_with({{"Regex", std::string(70000, 'a')}});
       }},
      {"does not compile",
       [](json& f) {
         f["pre_tokenizer"] = split_with({{"Regex", "((((a{999}){999}){999}){999})"}});
       }},
      {"does not compile",
       [](json& f) {
         f["pre_tokenizer"] = split_with({{"Regex", std::string(2000, '(') + std::string(2000, ')')}});
       }},
      {"a control verb at byte 0",
       [](json& f) {
         f["pre_tokenizer"] = split_with({{"Regex", "(*NO_JIT)a"}});
       }},
      {"has \\b at byte 0",
       [](json& f) {
         f["pre_tokenizer"] = split_with({{"Regex", "\\ba"}});
       }},
      {"a trailing backslash",
       [](json& f) {
         f["pre_tokenizer"] = split_with({{"Regex", "a\\"}});
       }},
      {"an unfinished \\u",
       [](json& f) {
         f["pre_tokenizer"] = split_with({{"Regex", "\\u00"}});
       }},
      {"an intersection of classes",
       [](json& f) {
         f["pre_tokenizer"] = split_with({{"Regex", "[a&&b]"}});
       }},
      {"a class inside a class",
       [](json& f) {
         f["pre_tokenizer"] = split_with({{"Regex", "[a[b]]"}});
       }},
      {"the group '(?#'",
       [](json& f) {
         f["pre_tokenizer"] = split_with({{"Regex", "(?#x)"}});
       }},
      {"found Split after ByteLevel",
       [](json& f) {
         f["pre_tokenizer"] = {{"type", "Sequence"},
                               {"pretokenizers", {{{"type", "ByteLevel"}}, split_with({{"String", "a"}})}}};
       }},
      {"post_processor.type: found \"BertProcessing\"",
       [](json& f) {
         f["post_processor"] = {{"type", "BertProcessing"}};
       }},
      {"post_processor.processors.0.type: found \"X\"",
       [](json& f) {
         f["post_processor"] = {{"type", "Sequence"}, {"processors", {{{"type", "X"}}}}};
       }},
      {"decoder.type: found \"WordPiece\"",
       [](json& f) {
         f["decoder"] = {{"type", "WordPiece"}};
       }},
      {"decoder.decoders.3: found Replace after ByteFallback or Fuse",
       [](json& f) { f["decoder"]["decoders"].push_back(f["decoder"]["decoders"][0]); }},
      {"decoder.decoders.3.stop: found 1, expected 0 after Fuse",
       [](json& f) {
         f["decoder"]["decoders"].push_back({{"type", "Strip"}, {"content", " "}, {"start", 0}, {"stop", 1}});
       }},
      {"decoder.decoders.3.start: found -1",
       [](json& f) {
         f["decoder"]["decoders"].push_back(
             {{"type", "Strip"}, {"content", " "}, {"start", -1}, {"stop", 0}});
       }},
      {"decoder.decoders.3.content: found \"ab\", expected one character",
       [](json& f) {
         f["decoder"]["decoders"].push_back(
             {{"type", "Strip"}, {"content", "ab"}, {"start", 1}, {"stop", 0}});
       }},
      {"model: found 1, expected an object", [](json& f) { f["model"] = 1; }},
      {"model.type: found \"Unigram\", expected one of BPE", [](json& f) { f["model"]["type"] = "Unigram"; }},
      {"model.dropout: found 0.1, expected null", [](json& f) { f["model"]["dropout"] = 0.1; }},
      {"model.continuing_subword_prefix: found \"##\", expected null",
       [](json& f) { f["model"]["continuing_subword_prefix"] = "##"; }},
      {"model.end_of_word_suffix: found \"</w>\"",
       [](json& f) { f["model"]["end_of_word_suffix"] = "</w>"; }},
      {"model.byte_fallback: found \"yes\"", [](json& f) { f["model"]["byte_fallback"] = "yes"; }},
      {"model.novelty: unknown field", [](json& f) { f["model"]["novelty"] = true; }},
      {"model.unk_token: found \"<none>\", expected a token of model.vocab",
       [](json& f) { f["model"]["unk_token"] = "<none>"; }},
      {"model.vocab: found an array of 0 values", [](json& f) { f["model"]["vocab"] = json::array(); }},
      {"model.vocab: found an object of 0 fields", [](json& f) { f["model"]["vocab"] = json::object(); }},
      {"model.vocab[\"a\"]: found -1, expected an id from 0 to 1999999",
       [](json& f) { f["model"]["vocab"]["a"] = -1; }},
      {"model.vocab[\"a\"]: found 4000000000, expected",
       [](json& f) { f["model"]["vocab"]["a"] = 4000000000; }},
      {"model.vocab[\"a\"]: found 18446744073709551615",
       [](json& f) { f["model"]["vocab"]["a"] = UINT64_MAX; }},
      {"model.vocab[\"a\"]: found 1.5", [](json& f) { f["model"]["vocab"]["a"] = 1.5; }},
      {"model.vocab[\"b\"]: found the id 9, which the token", [](json& f) { f["model"]["vocab"]["b"] = 9; }},
      {"model.merges: the field is missing", [](json& f) { f["model"].erase("merges"); }},
      {"model.merges: found null, expected an array", [](json& f) { f["model"]["merges"] = nullptr; }},
      {"model.merges.0: the left side \"q\" is not in model.vocab",
       [](json& f) { f["model"]["merges"][0][0] = "q"; }},
      {"model.merges.1: the result \"\\u2581x\" is not in model.vocab",
       [](json& f) { f["model"]["merges"][1][1] = "x"; }},
      {"model.merges.0: found \"a b c\", expected", [](json& f) { f["model"]["merges"][0] = "a b c"; }},
      {"model.merges.0: found \"ab\", expected", [](json& f) { f["model"]["merges"][0] = "ab"; }},
      {"model.merges.0: found an array of 3 values",
       [](json& f) {
         f["model"]["merges"][0] = {"a", "b", "c"};
       }},
      {"added_tokens: found 5, expected an array", [](json& f) { f["added_tokens"] = 5; }},
      {"added_tokens.0: found \"x\", expected an object", [](json& f) { f["added_tokens"][0] = "x"; }},
      {"added_tokens.0.content: found \"\", expected 1 to 512 bytes",
       [](json& f) { f["added_tokens"][0]["content"] = ""; }},
      {"added_tokens.0.content: found",
       [](json& f) { f["added_tokens"][0]["content"] = std::string(600, 'x'); }},
      {"added_tokens.0.id: found 7, expected 2", [](json& f) { f["added_tokens"][0]["id"] = 7; }},
      {"added_tokens.0.id: found -1", [](json& f) { f["added_tokens"][0]["id"] = -1; }},
      {"added_tokens.4.id: found 9, expected an id of its own",
       [](json& f) { f["added_tokens"][4]["id"] = 9; }},
      {"added_tokens.5.content: found \"<bos>\", expected each added token once",
       [](json& f) { f["added_tokens"].push_back(f["added_tokens"][0]); }},
      {"expected an id that no other added token has",
       [](json& f) { f["added_tokens"].push_back(added("<other>", f["added_tokens"][4]["id"], false)); }},
      {"added_tokens.0.lstrip: found \"no\"", [](json& f) { f["added_tokens"][0]["lstrip"] = "no"; }},
      {"added_tokens.0.color: unknown field", [](json& f) { f["added_tokens"][0]["color"] = "red"; }},
  };
  for (const Case& c : cases) {
    json file = gemma_style();
    c.spoil(file);
    const std::string message = error_of(file.dump());
    CHECK_MESSAGE(message.find(c.message) != std::string::npos, message);
    CHECK(message.rfind("tokenizer.json: ", 0) == 0);
    CHECK(message.find('\n') == std::string::npos);
    CHECK(message.size() < 400);
  }
}

TEST_CASE("tokenizer: files that are no such JSON are refused") {
  const std::string good = gemma_style().dump();
  CHECK(error_of("[]").find("expected an object") != std::string::npos);
  CHECK(error_of("").find("not valid JSON") != std::string::npos);
  CHECK(error_of(good + "x").find("not valid JSON") != std::string::npos);
  CHECK(error_of(std::string(100'000, '[')).find("nesting") != std::string::npos);
  CHECK(error_of("{\"model\":{},\"model\":{}}").find("\"model\": the key occurs twice") != std::string::npos);
  // Every cut of a good file is refused, never a crash.
  for (std::size_t size = 0; size < good.size(); size += 41)
    CHECK(error_of(good.substr(0, size)) != "(no error)");
  CHECK_THROWS_AS(Tokenizer::load("/no/such/tokenizer.json"), InputError);
}
