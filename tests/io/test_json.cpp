#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "io/json.hpp"
#include "runtime/core/error.hpp"

using namespace tessera;
using nlohmann::json;

namespace {

std::string error_of(std::string_view text, int max_depth = kJsonMaxDepth) {
  try {
    parse_json(text, "f.json", max_depth);
  } catch (const InputError& error) {
    return error.what();
  }
  return "(no error)";
}

std::string nested(int depth) {
  return std::string(static_cast<std::size_t>(depth), '[') +
         std::string(static_cast<std::size_t>(depth), ']');
}

}  // namespace

TEST_CASE("JSON: values arrive as written") {
  const json value =
      parse_json(R"( {"a":[1,-2,2.5,true,null,"\u00e9"],"b":{"c":{}},"d":[[],[{}]]} )", "f.json");
  CHECK(value == json::parse(R"({"a":[1,-2,2.5,true,null,"é"],"b":{"c":{}},"d":[[],[{}]]})"));
  CHECK(parse_json("18446744073709551615", "f").get<std::uint64_t>() == 18446744073709551615ull);
  CHECK(parse_json("\"x\"", "f") == "x");
}

TEST_CASE("JSON: broken texts are refused with the file and a place") {
  struct Case {
    std::string text;
    const char* message;
  };
  const Case cases[] = {
      {"", "f.json: byte 1 of 0: not valid JSON"},
      {"{", "f.json: byte"},
      {"{\"a\":1,}", "f.json: byte 8 of 8"},
      {"{} x", "f.json: byte 4 of 4"},
      {"{}{}", "not valid JSON"},
      {std::string("{}\0garbage", 10), "f.json: byte 2 of 10: not valid JSON: a NUL byte"},
      {"{\"a\":1,\"a\":2}", "f.json: \"a\": the key occurs twice"},
      {"{\"o\":{\"k\":1,\"\\u006b\":2}}", "f.json: \"k\": the key occurs twice"},
      {"[\"\xff\"]", "UTF-8"},
      {"[\"\xed\xa0\x80\"]", "UTF-8"},
      {"[\"\\ud800\"]", "surrogate"},
      {"[1e999]", "not valid JSON"},
      {"[NaN]", "not valid JSON"},
      {nested(65), "f.json: nesting is deeper than 64 levels"},
      {std::string(5'000'000, '['), "f.json: nesting is deeper than 64 levels"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.text.substr(0, 40));
    const std::string message = error_of(c.text);
    CHECK_MESSAGE(message.find(c.message) != std::string::npos, message);
    CHECK(message.find('\n') == std::string::npos);
  }
  CHECK(error_of(nested(64)) == "(no error)");
  CHECK(error_of(nested(4), 3) != "(no error)");
}

TEST_CASE("JSON: typed access names file, dotted field, value and what is expected") {
  const json object = parse_json(
      R"({"n":5,"big":18446744073709551615,"x":1.5,"s":"t","b":false,"z":null,"o":{"p":{"q":[7,8]}}})", "f");
  CHECK(json_integer(object, "n", "f", 0, 5) == 5);
  CHECK(json_integer(object, "o.p.q.1", "f", 0, 10) == 8);
  CHECK(json_number(object, "n", "f", 0, 10) == 5.0);
  CHECK(json_number(object, "x", "f", 0, 10) == 1.5);
  CHECK(json_string(object, "s", "f") == "t");
  CHECK(json_bool(object, "b", "f") == false);
  CHECK(json_integer_or(object, "z", "f", 0, 9, 3) == 3);
  CHECK(json_integer_or(object, "o.none.q", "f", 0, 9, 4) == 4);
  CHECK(json_number_or(object, "none", "f", 0, 9, 0.5) == 0.5);
  CHECK(json_bool_or(object, "b", "f", true) == false);
  CHECK(json_string_or(object, "z", "f", "d") == "d");
  CHECK(json_array(object, "o.p.q", "f").size() == 2);
  CHECK(json_object(object, "o.p", "f").size() == 1);
  CHECK(json_find(object, "o.p.q.2") == nullptr);
  CHECK(json_find(object, "n.m") == nullptr);

  CHECK_THROWS_WITH_AS(json_integer(object, "n", "f", 6, 9), "f: n: found 5, expected an integer from 6 to 9",
                       InputError);
  CHECK_THROWS_WITH_AS(json_integer(object, "big", "f", 0, 9),
                       "f: big: found 18446744073709551615, expected an integer from 0 to 9", InputError);
  CHECK_THROWS_AS(json_integer(object, "x", "f", 0, 9), InputError);
  CHECK_THROWS_AS(json_integer(object, "z", "f", 0, 9), InputError);
  CHECK_THROWS_WITH_AS(json_integer(object, "o.p.r", "f", 0, 9), "f: o.p.r: the field is missing",
                       InputError);
  CHECK_THROWS_WITH_AS(json_number(object, "s", "f", 0, 1),
                       "f: s: found \"t\", expected a number from 0 to 1", InputError);
  CHECK_THROWS_WITH_AS(json_bool(object, "n", "f"), "f: n: found 5, expected true or false", InputError);
  CHECK_THROWS_WITH_AS(json_string(object, "o", "f"), "f: o: found an object of 1 fields, expected a string",
                       InputError);
  CHECK_THROWS_AS(json_integer_or(object, "s", "f", 0, 9, 1), InputError);
}

TEST_CASE("JSON: files are bounded by size") {
  const std::string path = fmt::format("/tmp/tessera_test_json_{}.json", ::getpid());
  std::FILE* file = std::fopen(path.c_str(), "w");
  REQUIRE(file != nullptr);
  std::fputs("[1,2]", file);
  std::fclose(file);
  CHECK(read_json_file(path, 5).size() == 2);
  CHECK_THROWS_WITH_AS(read_json_file(path, 4), doctest::Contains("5 bytes, expected at most 4"), InputError);
  std::remove(path.c_str());
  CHECK_THROWS_WITH_AS(read_json_file(path, 4), doctest::Contains("No such file"), InputError);
  CHECK_THROWS_WITH_AS(read_json_file("/tmp", 4), doctest::Contains("not a regular file"), InputError);
}
