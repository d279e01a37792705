// The real vocabularies in ../shared: every case there, both chat prompts, and round trips, id by id.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <sstream>

#include "io/chat_prompt.hpp"
#include "io/tokenizer.hpp"

using namespace tessera;

namespace {

using Ids = std::vector<std::int32_t>;

const std::string kRoot = std::string(TESSERA_SHARED) + "/data/tokenizers/";

bool have_shared() {
  if (std::filesystem::exists(kRoot)) return true;
  MESSAGE("skipped: no vocabularies in " << kRoot);
  return false;
}

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file.good());
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::string> split(const std::string& text, const std::string& separator) {
  std::vector<std::string> parts;
  std::size_t from = 0;
  for (std::size_t at; (at = text.find(separator, from)) != std::string::npos; from = at + separator.size()) {
    parts.push_back(text.substr(from, at - from));
  }
  parts.push_back(text.substr(from));
  return parts;
}

Ids numbers(const std::string& line) {
  std::istringstream stream(line);
  Ids ids;
  for (std::int32_t id; stream >> id;) ids.push_back(id);
  return ids;
}

struct Vocabulary {
  const char* folder;
  ChatFamily family;
  std::int32_t vocab_size;
  const char* prompt_ids;  // of the chat prompt for "Hello", from the README beside the data
};

const Vocabulary kVocabularies[] = {
    {"qwen2.5", ChatFamily::kQwen2, 151665,
     "151644 8948 198 2610 525 1207 16948 11 3465 553 54364 14817 13 1446 525 264 10950 17847 13 151645 198 "
     "151644 872 198 9707 151645 198 151644 77091 198"},
    {"llama3.1", ChatFamily::kLlama3, 128256,
     "128000 128006 9125 128007 271 38766 1303 33025 2696 25 6790 220 2366 18 198 15724 2696 25 220 1627 "
     "10263 "
     "220 2366 19 271 128009 128006 882 128007 271 9906 128009 128006 78191 128007 271"},
};

// Loaded once: reading eight megabytes takes seconds in a debug build.
const Tokenizer& shared_tokenizer(const std::string& folder) {
  static std::map<std::string, Tokenizer> loaded;
  const auto found = loaded.find(folder);
  if (found != loaded.end()) return found->second;
  return loaded.emplace(folder, Tokenizer::load(kRoot + folder + "/tokenizer.json")).first->second;
}

// Random text over scripts, white space, marks, joiners, symbols and pieces of special tokens.
std::string random_text(std::mt19937_64& random, std::size_t length) {
  static const char* const kPieces[] = {"a",
                                        "the",
                                        " ",
                                        "  ",
                                        "\n",
                                        "\r\n",
                                        "\t",
                                        "'s",
                                        "'LL",
                                        "123",
                                        "7",
                                        "é",
                                        "e\u0301",
                                        "ß",
                                        "Ω",
                                        "я",
                                        "中文",
                                        "漢",
                                        "日本",
                                        "\u0e01\u0e33",
                                        "\u0915\u094d\u0937",
                                        "👩\u200d👧",
                                        "🙂",
                                        "\u00a0",
                                        "\u3000",
                                        "\u2028",
                                        "...",
                                        "!?",
                                        "<|",
                                        "|>",
                                        "im_start",
                                        "{\"k\":",
                                        "_x",
                                        "\u200b",
                                        "\u180e",
                                        "\u212b",
                                        "\uac00",
                                        "\u1100\u1161\u11a8"};
  std::string text;
  for (std::size_t i = 0; i < length; ++i) text += kPieces[random() % std::size(kPieces)];
  return text;
}

}  // namespace

TEST_CASE("tokenizer: the shared cases, id by id") {
  if (!have_shared()) return;
  for (const Vocabulary& vocabulary : kVocabularies) {
    CAPTURE(vocabulary.folder);
    const std::string folder = kRoot + vocabulary.folder;
    const Tokenizer& tokenizer = shared_tokenizer(vocabulary.folder);
    CHECK(tokenizer.vocab_size() == vocabulary.vocab_size);
    const auto texts = split(read(folder + "/cases.inp"), "\n__ggml_vocab_test__\n");
    auto lines = split(read(folder + "/cases.out"), "\n");
    if (lines.back().empty()) lines.pop_back();
    REQUIRE(texts.size() >= lines.size());
    REQUIRE(lines.size() > 30);
    for (std::size_t i = 0; i < lines.size(); ++i) {
      CAPTURE(i);
      CAPTURE(texts[i]);
      const Ids ids = tokenizer.encode(texts[i]);
      CHECK(ids == numbers(lines[i]));
      CHECK(tokenizer.decode(ids, false) == texts[i]);
    }
    for (std::size_t i = lines.size(); i < texts.size(); ++i) CHECK(texts[i].empty());
  }
}

TEST_CASE("tokenizer: the shared chat prompts, id by id") {
  if (!have_shared()) return;
  for (const Vocabulary& vocabulary : kVocabularies) {
    const Tokenizer& tokenizer = shared_tokenizer(vocabulary.folder);
    const std::string prompt = chat_prompt(vocabulary.family, "Hello");
    const Ids ids = tokenizer.encode(prompt);
    CHECK(ids == numbers(vocabulary.prompt_ids));
    CHECK(tokenizer.decode(ids, false) == prompt);
    CHECK(tokenizer.is_special(ids[0]));
    CHECK(tokenizer.decode(ids, true).find("<|") == std::string::npos);
  }
}

TEST_CASE("tokenizer: encoding then decoding gives the text back, and streaming gives the same") {
  if (!have_shared()) return;
  std::mt19937_64 random(7);
  // Llama normalises nothing; Qwen gives back the NFC form, which decoding and encoding leaves as it is.
  for (const Vocabulary& vocabulary : kVocabularies) {
    const Tokenizer& tokenizer = shared_tokenizer(vocabulary.folder);
    for (std::size_t length = 0; length < 120; ++length) {
      const std::string text = random_text(random, length);
      const Ids ids = tokenizer.encode(text);
      const std::string decoded = tokenizer.decode(ids, false);
      if (vocabulary.family == ChatFamily::kLlama3) CHECK(decoded == text);
      CHECK(tokenizer.decode(tokenizer.encode(decoded), false) == decoded);

      StreamDecoder stream(tokenizer, false);
      std::string streamed;
      for (const std::int32_t id : ids) {
        const std::string part = stream.push(id);
        CHECK(is_valid_utf8(part));
        streamed += part;
      }
      CHECK(streamed + stream.flush() == decoded);
    }
  }
}

TEST_CASE("tokenizer: arbitrary ids decode to valid UTF-8, streamed or not") {
  if (!have_shared()) return;
  std::mt19937_64 random(11);
  const Tokenizer& tokenizer = shared_tokenizer("qwen2.5");
  bool replaced = false;
  for (int round = 0; round < 300; ++round) {
    Ids ids(random() % 30);
    for (auto& id : ids) {
      id = static_cast<std::int32_t>(random() % (round % 3 == 0 ? 256 : 153000)) - (round % 7 == 0 ? 3 : 0);
    }
    for (const bool skip : {false, true}) {
      const std::string decoded = tokenizer.decode(ids, skip);
      CHECK(is_valid_utf8(decoded));
      replaced = replaced || decoded.find("\uFFFD") != std::string::npos;
      StreamDecoder stream(tokenizer, skip);
      std::string streamed;
      for (std::size_t at = 0; at < ids.size();) {
        const std::size_t count = std::min<std::size_t>(1 + random() % 4, ids.size() - at);
        const std::string part = stream.push(std::span(ids).subspan(at, count));
        CHECK(is_valid_utf8(part));
        streamed += part;
        at += count;
      }
      CHECK(streamed + stream.flush() == decoded);
    }
  }
  CHECK(replaced);
}
