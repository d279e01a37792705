// What encoding and decoding mean, on small vocabularies made here.
#include "io/tokenizer.hpp"

#include <doctest/doctest.h>

#include <random>
#include <set>
#include <thread>

#include "io/tokenizer_text.hpp"
#include "runtime/core/error.hpp"
#include "tests/io/small_tokenizer.hpp"
#include "tests/reference/naive_bpe.hpp"

using namespace tessera;
using namespace tessera::test;
using nlohmann::json;

namespace {

// Ids as the texts of the file, joined by '|', which reads better than numbers.
std::string spelled(const json& file, const Ids& ids) {
  std::map<std::int32_t, std::string> texts;
  for (const auto& [text, id] : file["model"]["vocab"].items()) texts[id.get<std::int32_t>()] = text;
  for (const auto& token : file["added_tokens"]) texts[token["id"].get<std::int32_t>()] = token["content"];
  std::string out;
  for (const auto id : ids) out += (out.empty() ? "" : "|") + texts.at(id);
  return out;
}

std::string encoded(const json& file, std::string_view text) {
  return spelled(file, parse_tokenizer(file).encode(text));
}

}  // namespace

TEST_CASE("tokenizer: Gemma's shape") {
  const json file = gemma_style();
  const Tokenizer tokenizer = parse_tokenizer(file);
  const auto pieces = [&](std::string_view text) { return spelled(file, tokenizer.encode(text)); };
  CHECK(pieces("") == "");
  CHECK(pieces("ab") == "ab");
  CHECK(pieces(" ab") == "▁ab");
  CHECK(pieces("ab abc") == "ab|▁abc");
  CHECK(pieces("c ab") == "c|▁ab");  // "▁ ab" comes before "c ▁" in the list
  CHECK(pieces("c d") == "c▁|d");    // a merge across the space: the stretch is one piece
  CHECK(pieces("    ") == "▁▁▁▁");
  CHECK(pieces("ababab") == "ababab");
  CHECK(pieces("\n\n\n") == "\n\n|\n");
  CHECK(pieces("é中") == "é中");
  CHECK(pieces("aZa") == "a|<0x5A>|a");
  CHECK(pieces("漢") == "<0xE6>|<0xBC>|<0xA2>");
  CHECK(pieces("<bos><start_of_turn>a<end_of_turn>\n") == "<bos>|<start_of_turn>|a|<end_of_turn>|\n");
  CHECK(pieces("<table>") == "<table>");
  CHECK(pieces("<0x41>") == "<0x3C>|<0x30>|x|<0x34>|<0x31>|<0x3E>");  // not an added token: spelled out

  CHECK(tokenizer.decode(tokenizer.encode(" ab漢é 中Z"), false) == " ab漢é 中Z");
  CHECK(tokenizer.decode(tokenizer.encode("<bos>a<table>"), true) == "a<table>");
  CHECK(tokenizer.decode(tokenizer.encode("<bos>a<table>"), false) == "<bos>a<table>");
  CHECK(tokenizer.token_id("<0x0A>") == 6 + 10);
  CHECK(tokenizer.token_id("no such") == std::nullopt);
  CHECK(tokenizer.is_special(2));
  CHECK_FALSE(tokenizer.is_special(3));  // <unk> is no added token here
  CHECK_FALSE(tokenizer.is_special(-1));
  CHECK_FALSE(tokenizer.is_special(tokenizer.vocab_size()));
  CHECK(tokenizer.vocab_size() == tokenizer.token_id("<table>").value() + 1);
}

TEST_CASE("tokenizer: unknown characters without byte tokens") {
  json file = gemma_style();
  file["model"]["byte_fallback"] = false;
  CHECK(encoded(file, "aZZZbQ") == "a|<unk>|b|<unk>");
  file["model"]["fuse_unk"] = false;
  CHECK(encoded(file, "aZZZbQ") == "a|<unk>|<unk>|<unk>|b|<unk>");
  file["model"]["unk_token"] = nullptr;
  CHECK_THROWS_WITH_AS(encoded(file, "aZ"), doctest::Contains("the bytes 5A"), InputError);
}

TEST_CASE("tokenizer: decoding replaces what is not UTF-8, whole or streamed") {
  const Tokenizer tokenizer = parse_tokenizer(gemma_style());
  const auto byte = [](int value) { return static_cast<std::int32_t>(6 + value); };
  struct Case {
    Ids ids;
    const char* text;
  };
  const Case cases[] = {
      {{}, ""},
      {{byte(0xE6), byte(0xBC), byte(0xA2)}, "漢"},
      {{byte(0xE6), byte(0xBC)}, "\uFFFD"},
      {{byte(0xE6), byte('x')}, "\uFFFDx"},
      {{byte(0xFF), byte(0xC0), byte(0x80)}, "\uFFFD\uFFFD\uFFFD"},
      {{byte(0xED), byte(0xA0), byte(0x80)}, "\uFFFD\uFFFD\uFFFD"},  // a surrogate
      {{byte(0xF0), byte(0x9F), byte(0x99), byte(0xF0)}, "\uFFFD\uFFFD"},
      {{-5, byte('a'), 1'000'000, byte('b')}, "ab"},  // rows of the model without a token
  };
  for (const Case& c : cases) {
    CHECK(tokenizer.decode(c.ids, false) == c.text);
    StreamDecoder stream(tokenizer, false);
    for (int round = 0; round < 2; ++round) {  // flush makes it ready for another text
      std::string text;
      for (const auto id : c.ids) text += stream.push(id);
      CHECK(text + stream.flush() == c.text);
    }
  }
  CHECK(StreamDecoder(tokenizer, false).push(byte(0xE6)) == "");
}

TEST_CASE("tokenizer: merging equals the naive definition, short and long pieces") {
  std::mt19937_64 random(3);
  for (int round = 0; round < 24; ++round) {
    // Random merges over few letters, so that ranks, overlaps and repeats collide often.
    std::vector<std::string> known = {"a", "b", "c"};
    Merges merges;
    std::set<std::pair<std::string, std::string>> seen;
    for (int i = 0; i < 12; ++i) {
      const std::string left = known[random() % known.size()];
      const std::string right = known[random() % known.size()];
      if (!seen.insert({left, right}).second || left.size() + right.size() > 24) continue;
      merges.push_back({left, right});
      known.push_back(left + right);
    }
    std::shuffle(merges.begin(), merges.end(), random);  // a result may rank before its parts
    const json file = byte_level_style(merges);
    const Tokenizer tokenizer = parse_tokenizer(file);
    for (const std::size_t length : {1u, 2u, 3u, 7u, 30u, 47u, 48u, 49u, 50u, 130u, 400u}) {
      std::string text;
      std::vector<std::string> symbols;
      for (std::size_t i = 0; i < length; ++i) {
        symbols.emplace_back(1, static_cast<char>('a' + random() % (1 + round % 3)));
        text += symbols.back();
      }
      Ids expected;
      for (const auto& symbol : reference::naive_bpe(symbols, merges)) {
        expected.push_back(tokenizer.token_id(symbol).value());
      }
      CHECK(tokenizer.encode(text) == expected);
    }
  }
}

TEST_CASE("tokenizer: ignore_merges takes a whole piece that no merge reaches") {
  json file = byte_level_style({{"a", "b"}});
  file["model"]["vocab"]["Ġabc"] = 5000;
  CHECK(encoded(file, " abc") == "Ġ|ab|c");
  file["model"]["ignore_merges"] = true;
  CHECK(encoded(file, " abc") == "Ġabc");
  CHECK(encoded(file, " abcd") == "Ġ|ab|c|d");
}

TEST_CASE("tokenizer: added tokens") {
  json file = byte_level_style({});
  const auto add = [&](const std::string& content, std::int32_t id, const char* option = nullptr) {
    json token = added(content, id, false);
    if (option != nullptr) token[option] = true;
    file["added_tokens"].push_back(token);
  };
  add("<t>", 600);
  add("<t><t>", 601);
  add("<l>", 602, "lstrip");
  add("<r>", 603, "rstrip");
  add("<w>", 604, "single_word");
  add("aé", 605, "normalized");
  CHECK(encoded(file, "<t><t><t>") == "<t><t>|<t>");
  CHECK(encoded(file, "<<t>>") == "<|<t>|>");
  CHECK(encoded(file, "a \n<l> b") == "a|<l>|Ġ|b");
  CHECK(encoded(file, "a <r>\u00a0 b") == "a|Ġ|<r>|b");
  CHECK(encoded(file, "<w> <w>") == "<w>|Ġ|<w>");
  CHECK(encoded(file, "é<w>") == "Ã|©|<|w|>");
  CHECK(encoded(file, "<w>_") == "<|w|>|_");
  CHECK(encoded(file, "ae\u0301") == "a|e|Ì|ģ");
  file["normalizer"] = {{"type", "NFC"}};
  CHECK(encoded(file, "ae\u0301") == "aé");
}

TEST_CASE("tokenizer: Llama 2's shape: prepended and stripped space") {
  json file = gemma_style();
  file["normalizer"] = {{"type", "Sequence"},
                        {"normalizers", {{{"type", "Prepend"}, {"prepend", "▁"}}, file["normalizer"]}}};
  file["pre_tokenizer"] = nullptr;
  file["decoder"]["decoders"].push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  CHECK(encoded(file, "ab") == "▁ab");
  CHECK(encoded(file, "") == "");
  CHECK(encoded(file, "<bos>ab") == "<bos>|▁ab");
  const Tokenizer tokenizer = parse_tokenizer(file);
  CHECK(tokenizer.decode(tokenizer.encode("ab ab"), false) == "ab ab");
  CHECK(tokenizer.decode(tokenizer.encode("  ab"), false) == "  ab");
}

TEST_CASE("tokenizer: splits") {
  struct Case {
    const char* behavior;
    bool invert;
    const char* pieces;
  };
  const Case cases[] = {
      {"Isolated", false, "a|--|b|-|c|-"},
      {"Removed", false, "a|b|c"},
      {"Removed", true, "--|-|-"},
      {"MergedWithPrevious", false, "a--|b-|c-"},
      {"MergedWithNext", false, "a|--b|-c|-"},
      {"Contiguous", false, "a|--|b|-|c|-"},
      {"MergedWithPrevious", true, "a|--b|-c|-"},
  };
  for (const Case& c : cases) {
    json file = byte_level_style(
        {{"-", "-"}, {"a", "--"}, {"a", "-"}, {"b", "-"}, {"c", "-"}, {"--", "b"}, {"-", "c"}});
    json& merges = file["model"]["merges"];
    merges =
        json::array({"- -", "-- b", "a --", "b -", "- c", "c -"});  // so that each whole piece is one token
    file["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"}, {"pattern", {{"Regex", "-+"}}}, {"behavior", c.behavior}, {"invert", c.invert}},
          {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
    CAPTURE(c.behavior);
    CHECK(encoded(file, "a--b-c-") == c.pieces);
  }
}

TEST_CASE("tokenizer: patterns have Oniguruma's meaning") {
  const auto pieces = [](const char* expression, std::string_view text) {
    std::vector<Span> spans;
    Pattern::regex(expression, "f", "p").find(text, spans);
    std::string out;
    for (const Span& span : spans) {
      out += (out.empty() ? "" : "|") + std::string(text.substr(span.begin, span.end - span.begin)) +
             (span.is_match ? "+" : "");
    }
    return out;
  };
  CHECK(pieces("\\s+", "a \u00a0b\u180e") == "a| \u00a0+|b\u180e");
  CHECK(pieces("[^\\s]+", "a \u180e") == "a+| |\u180e+");
  CHECK(pieces("\\w+", "aé_1²-") == "aé_1²+|-");
  CHECK(pieces("[^\\w]", "a²") == "a|²+");
  CHECK(pieces("(?i:'s)", "'S'ſ") == "'S+|'ſ+");
  CHECK(pieces("\\s+(?!\\S)|\\s+", "a   b") == "a|  +| +|b");
  CHECK(pieces("(?=b)", "abb") == "a|+|b|+|b");
  CHECK(pieces("b*", "abbc") == "+|a|bb+|c|+");
  CHECK(pieces("\\u0062", "abc") == "a|b+|c");
  CHECK(pieces("^.", "ab\ncd") == "a+|b\n|c+|d");
  // Nothing matches for longer than one stride of the search; then it does.
  const std::string far = std::string(10'000, 'x') + "é";
  CHECK(pieces("é", far) == std::string(10'000, 'x') + "|é+");
  CHECK_THROWS_WITH_AS(pieces("(a*)*[bd]", std::string(200, 'a') + "c"),
                       doctest::Contains("f: p: the regular expression"), InputError);
}

TEST_CASE("tokenizer: normalisation of hostile and irregular text") {
  CHECK(unicode_normalize("e\u0301", UnicodeForm::kNfc) == "é");
  CHECK(unicode_normalize("é", UnicodeForm::kNfd) == "e\u0301");
  CHECK(unicode_normalize("a\u0301\u0316", UnicodeForm::kNfc) == "á\u0316");  // marks are reordered
  CHECK(unicode_normalize("\u212b", UnicodeForm::kNfc) == "\u00c5");
  CHECK(unicode_normalize("\u1112\u1161\u11ab", UnicodeForm::kNfc) == "한");
  CHECK(unicode_normalize("\ud558\u11a7\u11ab", UnicodeForm::kNfc) == "\ud558\u11a7\u11ab");
  CHECK(unicode_normalize("\ufb01", UnicodeForm::kNfkc) == "fi");
  CHECK(unicode_normalize("", UnicodeForm::kNfd) == "");
  std::string marks = "a";
  std::string ordered;
  std::string above;
  for (int i = 0; i < 100'000; ++i) {
    marks += "\u0302\u0316";
    ordered += "\u0316";
    above += "\u0302";
  }
  // Sorted by class; the first circumflex composes with the letter. Quadratic sorting would take minutes.
  CHECK(unicode_normalize(marks, UnicodeForm::kNfc) == "â" + ordered + above.substr(2));
}

TEST_CASE("tokenizer: ill-formed UTF-8 counts as U+FFFD") {
  const Tokenizer tokenizer = parse_tokenizer(byte_level_style({}));
  CHECK(tokenizer.encode("a\xff") == tokenizer.encode("a\uFFFD"));
  CHECK(tokenizer.encode("\xe4\xb8") == tokenizer.encode("\uFFFD"));
  CHECK(tokenizer.encode("\xed\xa0\x80") == tokenizer.encode("\uFFFD\uFFFD\uFFFD"));
  CHECK(tokenizer.encode(std::string_view("a\0b", 3)).size() == 3);
}

TEST_CASE("tokenizer: many threads encode with one tokenizer") {
  const Tokenizer tokenizer = parse_tokenizer(gemma_style());
  std::string text;
  for (int i = 0; i < 2000; ++i) text += "ab c é中 漢<bos>";
  const Ids expected = tokenizer.encode(text);
  std::vector<Ids> found(4);
  std::vector<std::thread> threads;
  for (Ids& ids : found) threads.emplace_back([&] { ids = tokenizer.encode(text); });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& ids : found) CHECK(ids == expected);
}

TEST_CASE("tokenizer: the fingerprint follows the bytes of the file") {
  const std::string text = gemma_style().dump();
  CHECK(Tokenizer::parse(text, "a").fingerprint() == Tokenizer::parse(text, "b").fingerprint());
  CHECK(Tokenizer::parse(text + " ", "a").fingerprint() != Tokenizer::parse(text, "a").fingerprint());
}
