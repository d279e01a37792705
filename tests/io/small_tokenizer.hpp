// Small tokenizers made in the tests.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "io/tokenizer.hpp"

namespace tessera::test {

using Ids = std::vector<std::int32_t>;
using Merges = std::vector<std::pair<std::string, std::string>>;

inline Tokenizer parse_tokenizer(const nlohmann::json& file) {
  return Tokenizer::parse(file.dump(), "tokenizer.json");
}

inline nlohmann::json added(const std::string& content, std::int32_t id, bool special,
                            bool normalized = false) {
  return {{"id", id},
          {"content", content},
          {"special", special},
          {"normalized", normalized},
          {"single_word", false},
          {"lstrip", false},
          {"rstrip", false}};
}

// Gemma's shape: characters, "▁" for space, bytes as <0xHH>, merges over the whole stretch.
inline nlohmann::json gemma_style() {
  nlohmann::json vocab;
  std::int32_t next = 0;
  const auto token = [&](const std::string& text) {
    if (!vocab.contains(text)) vocab[text] = next++;
  };
  for (const char* text : {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"})
    token(text);
  for (int byte = 0; byte < 256; ++byte) {
    const char* const digits = "0123456789ABCDEF";
    token(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">");
  }
  for (const char* text : {"▁", "a", "b", "c", "d", "e", "é", "中", "\n", "x"}) token(text);
  nlohmann::json merges = nlohmann::json::array();
  for (const auto& [left, right] : Merges{{"a", "b"},
                                          {"▁", "▁"},
                                          {"▁", "ab"},
                                          {"▁▁", "▁▁"},
                                          {"c", "▁"},
                                          {"é", "中"},
                                          {"▁ab", "c"},
                                          {"b", "a"},
                                          {"\n", "\n"},
                                          {"ab", "ab"},
                                          {"abab", "ab"}}) {
    token(left + right);
    merges.push_back({left, right});
  }
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens",
           {added("<bos>", 2, true), added("<eos>", 1, true), added("<start_of_turn>", 4, true),
            added("<end_of_turn>", 5, true), added("<table>", next, false)}},
          {"normalizer", {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}}},
          {"pre_tokenizer",
           {{"type", "Split"},
            {"pattern", {{"String", " "}}},
            {"behavior", "MergedWithPrevious"},
            {"invert", false}}},
          {"post_processor", {{"type", "TemplateProcessing"}, {"single", nlohmann::json::array()}}},
          {"decoder",
           {{"type", "Sequence"},
            {"decoders",
             {{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
              {{"type", "ByteFallback"}},
              {{"type", "Fuse"}}}}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", "<unk>"},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"ignore_merges", false},
            {"vocab", vocab},
            {"merges", merges}}}};
}

// GPT-2's shape: bytes spelled as characters. `merges` are over that spelling.
inline nlohmann::json byte_level_style(const Merges& merges) {
  nlohmann::json vocab;
  std::int32_t next = 0;
  // The 256 characters, written out independently of io/: printable Latin-1, then U+0100...U+0143.
  const auto token = [&](const std::string& text) {
    if (!vocab.contains(text)) vocab[text] = next++;
  };
  const auto character = [](int code) {
    return code < 0x80
               ? std::string(1, static_cast<char>(code))
               : std::string{static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
  };
  for (int code = 0x21; code < 0x144; ++code) {
    if (code == 0x7F || code == 0xAD || (code > 0x7F && code < 0xA1)) continue;
    token(character(code));
  }
  nlohmann::json lines = nlohmann::json::array();
  for (const auto& [left, right] : merges) {
    token(left + right);
    lines.push_back(left + " " + right);
  }
  const nlohmann::json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  return {{"version", "1.0"},
          {"added_tokens", {added("<|end|>", next, true)}},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", byte_level},
          {"decoder", byte_level},
          {"model", {{"type", "BPE"}, {"unk_token", nullptr}, {"vocab", vocab}, {"merges", lines}}}};
}

}  // namespace tessera::test
