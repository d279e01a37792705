// The tokenizer of the mini models against what the tokenizers library makes of the same file, and the
// property that it was made for: an identifier has the same tokens wherever it stands.
#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "io/tokenizer.hpp"

using namespace tessera;

namespace {

using Ids = std::vector<std::int32_t>;

Tokenizer mini_tokenizer() {
  return Tokenizer::load(std::string(TESSERA_FIXTURES) + "/../../jobs/models/tokenizer.json");
}

bool contains(const Ids& whole, const Ids& part) {
  return std::search(whole.begin(), whole.end(), part.begin(), part.end()) != whole.end();
}

}  // namespace

TEST_CASE("mini tokenizer: ids of the tokenizers library") {
  const Tokenizer tokenizer = mini_tokenizer();
  CHECK(tokenizer.vocab_size() == 4096);
  std::ifstream file(std::string(TESSERA_FIXTURES) + "/mini/tokenizer_cases.json");
  const nlohmann::json cases = nlohmann::json::parse(file);
  REQUIRE(cases.size() > 70);
  for (const auto& one : cases) {
    const std::string text = one["text"];
    CAPTURE(text);
    const Ids ids = tokenizer.encode(text);
    CHECK(ids == one["ids"].get<Ids>());
  }
}

TEST_CASE("mini tokenizer: identifiers are the same wherever they stand") {
  const Tokenizer tokenizer = mini_tokenizer();
  const std::string key = "k7v9ttmt-kfgryez1-1vahgjvv-efulh1cm";
  const Ids alone = tokenizer.encode(key);
  CHECK(alone.size() == 4 * 4 + 3);  // four pairs a group, and the hyphens
  for (const std::string& text :
       {"\n" + key + ": ", "1. " + key + "\n", ": " + key + "\n", "\n" + key + "\n"}) {
    CAPTURE(text);
    CHECK(contains(tokenizer.encode(text), alone));
  }
  const Ids name = tokenizer.encode("ABCDE");
  CHECK(name.size() == 3);
  for (const char* text : {"\nABCDE = 12345\n", "FGHIJ = ABCDE\n", "1. ABCDE\n"}) {
    CAPTURE(text);
    CHECK(contains(tokenizer.encode(text), name));
  }
}
