#include "tests/command/refusal.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>

namespace tessera::test {

namespace fs = std::filesystem;

namespace {

void check_one_line(const CommandResult& result, const std::vector<std::string>& says) {
  CAPTURE(result.err);
  const std::vector<std::string> lines = lines_of(result.err);
  CHECK(lines.size() == 1);
  CHECK(result.out == "");
  CHECK(result.err.rfind("tessera: ", 0) == 0);
  CHECK(result.err.find("unexpected:") == std::string::npos);
  CHECK(result.err.find("internal error") == std::string::npos);
  CHECK(result.err.size() < 1000);
  CHECK(std::all_of(result.err.begin(), result.err.end() - 1,
                    [](char c) { return static_cast<unsigned char>(c) >= 0x20; }));
  for (const std::string& part : says) {
    CAPTURE(part);
    CHECK(result.err.find(part) != std::string::npos);
  }
}

}  // namespace

Words eval(const std::string& model, const std::string& trace) {
  return {"eval",     "--model",   model,       "--task",  "ruler_niah",
          "--length", "1800",      "--samples", "1",       "--max-output-tokens",
          "4",        "--threads", "1",         "--trace", trace};
}

Words with(Words words, const std::string& option, const std::string& value) {
  const auto found = std::find(words.begin(), words.end(), option);
  REQUIRE(found != words.end());
  *(found + 1) = value;
  return words;
}

void check_refused(const CommandResult& result, int code, const std::vector<std::string>& says) {
  CHECK(!result.timed_out);
  CHECK(result.code == code);
  check_one_line(result, says);
}

bool is_empty(const std::string& path) {
  return fs::directory_iterator(path) == fs::directory_iterator();
}

}  // namespace tessera::test
