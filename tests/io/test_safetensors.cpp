// Safetensors files, good ones and every way of being bad. The files are built byte by byte here.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <cstring>
#include <set>

#include "io/safetensors.hpp"
#include "runtime/core/random.hpp"
#include "tests/io/checkpoint_files.hpp"

using namespace tessera;
using namespace tessera::test;

namespace {

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets +
         "}";
}

}  // namespace

TEST_CASE("safetensors: tensors, metadata, padding, empty and scalar tensors, unaligned data") {
  const TempDir dir;
  // Not in the order of offsets, an odd header length, so that nothing is aligned.
  const std::string header =
      "{\"__metadata__\":{\"format\":\"pt\"}," + tensor("b", "F32", "[2,1]", "[6,14]") + "," +
      tensor("a", "BF16", "[3]", "[0,6]") + "," + tensor("scalar", "F16", "[]", "[14,16]") + "," +
      tensor("none", "F32", "[0,7]", "[16,16]") + "," + tensor("steps", "I64", "[1]", "[16,24]") + "}  ";
  std::string data(24, '\0');
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i + 1);
  const std::string path = dir.write("m.safetensors", safetensors(header, data));

  SafetensorsFile opened = SafetensorsFile::open(path);
  const SafetensorsFile file = std::move(opened);  // names and data survive a move
  REQUIRE(file.tensors().size() == 5);
  CHECK(file.header() == header);
  CHECK(file.size() == 8 + header.size() + 24);
  std::vector<std::string> order;
  for (const TensorEntry& entry : file.tensors()) order.push_back(entry.name);
  CHECK(order == std::vector<std::string>{"a", "b", "scalar", "none", "steps"});

  const TensorEntry* b = file.find("b");
  REQUIRE(b != nullptr);
  CHECK(file.dtype_of(*b) == DType::kF32);
  CHECK(b->shape == std::vector<std::int64_t>{2, 1});
  CHECK(b->begin == 8 + header.size() + 6);
  CHECK(b->bytes == 8);
  CHECK(b->elements() == 2);
  CHECK(std::memcmp(file.data(*b), data.data() + 6, 8) == 0);
  CHECK(file.dtype_of(*file.find("a")) == DType::kBF16);
  CHECK(file.dtype_of(*file.find("scalar")) == DType::kF16);
  CHECK(file.find("scalar")->elements() == 1);
  CHECK(file.find("none")->elements() == 0);
  CHECK(file.find("none")->bytes == 0);
  CHECK(file.find("c") == nullptr);

  // A dtype without arithmetic is legal until it is asked for.
  const std::string message = message_of([&] { file.dtype_of(*file.find("steps")); });
  CHECK(contains(message, path));
  CHECK(contains(message, "\"steps\""));
  CHECK(contains(message, "I64"));
}

TEST_CASE("safetensors: a file without tensors, and sub-byte dtypes") {
  const TempDir dir;
  CHECK(SafetensorsFile::open(dir.write("empty", safetensors("{}", ""))).tensors().empty());
  const std::string half = "{" + tensor("x", "F4", "[2,3]", "[0,3]") + "}";
  const SafetensorsFile file = SafetensorsFile::open(dir.write("f4", safetensors(half, "abc")));
  CHECK(file.find("x")->bytes == 3);
  CHECK_FALSE(file.find("x")->dtype.has_value());
}

TEST_CASE("safetensors: what is malformed is refused with file and field") {
  struct Case {
    const char* name;
    std::string bytes;
    const char* field;
    const char* value = "";
  };
  const std::string four(4, 'x'), eight(8, 'x');
  const auto one = [&](const std::string& text, const std::string& data) {
    return safetensors("{" + text + "}", data);
  };
  const std::string good = one(tensor("w", "F32", "[1]", "[0,4]"), four);
  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += "{\"a\":";
  std::vector<Case> cases = {
      {"empty file", "", "header length", "0 bytes"},
      {"shorter than a length", "\x02\0\0", "header length", "8"},
      {"only a length", little_endian(2), "header length", "past the end"},
      {"length past the file", little_endian(good.size() - 7) + good.substr(8), "header length",
       "past the end"},
      {"length of all ones", little_endian(~0ull) + good.substr(8), "header length", "18446744073709551615"},
      {"length over the limit", little_endian(100'000'001) + good.substr(8), "header length", "100000001"},
      {"length 0", safetensors("", four), "header", "nothing"},
      {"header cut short", little_endian(good.size() - 20) + good.substr(8), "byte", "not valid JSON"},
      {"begins with a space", safetensors(" {}", ""), "header", "'{'"},
      {"an array", safetensors("[]", ""), "header", "'{'"},
      {"not JSON", safetensors("{nope}", ""), "byte", "not valid JSON"},
      {"text after the object", safetensors("{} x", ""), "byte"},
      {"a NUL in the padding", safetensors(std::string("{}\0\0", 4), ""), "NUL"},
      {"invalid UTF-8 in a name", one(tensor("w\xff", "F32", "[1]", "[0,4]"), four), "byte",
       "not valid JSON"},
      {"a broken surrogate in a name", one(tensor("\\ud800", "F32", "[1]", "[0,4]"), four), "byte",
       "not valid JSON"},
      {"deep nesting of objects", safetensors(deep, ""), "nesting", "4 levels"},
      {"deep nesting of lists", safetensors("{\"a\":" + std::string(100'000, '['), ""), "nesting",
       "4 levels"},
      {"a duplicate tensor",
       one(tensor("w", "F32", "[1]", "[0,4]") + "," + tensor("w", "F32", "[1]", "[4,8]"), eight), "\"w\"",
       "twice"},
      {"a duplicate under another spelling",
       one(tensor("w", "F32", "[1]", "[0,4]") + "," + tensor("\\u0077", "F32", "[1]", "[4,8]"), eight),
       "\"w\"", "twice"},
      {"a duplicate field",
       one("\"w\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}", four),
       "\"dtype\"", "twice"},
      {"a tensor that is a number", one("\"w\":4", four), "\"w\"", "4"},
      {"no dtype", one("\"w\":{\"shape\":[1],\"data_offsets\":[0,4]}", four), "\"w\".dtype", "missing"},
      {"unknown dtype", one(tensor("w", "F33", "[1]", "[0,4]"), four), "\"w\".dtype", "F33"},
      {"dtype in lower case", one(tensor("w", "f32", "[1]", "[0,4]"), four), "\"w\".dtype", "f32"},
      {"dtype a number", one("\"w\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}", four), "\"w\".dtype",
       "7"},
      {"no shape", one("\"w\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}", four), "\"w\".shape", "nothing"},
      {"shape a number", one(tensor("w", "F32", "1", "[0,4]"), four), "\"w\".shape", "1"},
      {"negative size", one(tensor("w", "F32", "[-1]", "[0,4]"), four), "\"w\".shape", "-1"},
      {"fractional size", one(tensor("w", "F32", "[1.0]", "[0,4]"), four), "\"w\".shape", "1.0"},
      {"size over 64 bits", one(tensor("w", "F32", "[18446744073709551617]", "[0,4]"), four), "\"w\".shape"},
      {"size over 63 bits", one(tensor("w", "F32", "[9223372036854775808]", "[0,4]"), four), "\"w\".shape",
       "9223372036854775808"},
      {"product overflows to the right size",
       one(tensor("w", "F32", "[4611686018427387905,4]", "[0,16]"), eight + eight), "\"w\".shape",
       "overflows"},
      {"product overflows to zero", one(tensor("w", "F32", "[4294967296,4294967296]", "[0,0]"), ""),
       "\"w\".shape", "overflows"},
      {"too many dimensions",
       one(tensor("w", "F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]"),
           four),
       "\"w\".shape", "33"},
      {"half a byte", one(tensor("w", "F4", "[3]", "[0,1]"), "x"), "\"w\".shape", "12 bits"},
      {"no offsets", one("\"w\":{\"dtype\":\"F32\",\"shape\":[1]}", four), "\"w\".data_offsets", "nothing"},
      {"one offset", one(tensor("w", "F32", "[1]", "[4]"), four), "\"w\".data_offsets", "[4]"},
      {"three offsets", one(tensor("w", "F32", "[1]", "[0,4,8]"), eight), "\"w\".data_offsets", "3"},
      {"negative offset", one(tensor("w", "F32", "[1]", "[-4,0]"), four), "\"w\".data_offsets", "-4"},
      {"offset a string", one(tensor("w", "F32", "[1]", "[0,\"4\"]"), four), "\"w\".data_offsets", "\"4\""},
      {"offsets reversed", one(tensor("w", "F32", "[1]", "[4,0]"), four), "\"w\".data_offsets", "[4, 0]"},
      {"offsets past the file", one(tensor("w", "F32", "[2]", "[0,8]"), four), "\"w\".data_offsets",
       "4 bytes"},
      {"smaller than shape and dtype", one(tensor("w", "F32", "[2]", "[0,4]"), four), "\"w\".data_offsets",
       "takes 8"},
      {"larger than shape and dtype", one(tensor("w", "BF16", "[1]", "[0,4]"), four), "\"w\".data_offsets",
       "takes 2"},
      {"an empty shape with bytes", one(tensor("w", "F32", "[0]", "[0,4]"), four), "\"w\".data_offsets",
       "takes 0"},
      {"does not begin at 0", one(tensor("w", "F32", "[1]", "[4,8]"), eight), "\"w\".data_offsets", "gaps"},
      {"a gap",
       one(tensor("a", "F32", "[1]", "[0,4]") + "," + tensor("b", "F32", "[1]", "[8,12]"), eight + four),
       "\"b\".data_offsets", "gaps"},
      {"an overlap",
       one(tensor("a", "F32", "[1]", "[0,4]") + "," + tensor("b", "F32", "[1]", "[2,6]"), eight),
       "\"b\".data_offsets", "overlap"},
      {"the same bytes twice",
       one(tensor("a", "F32", "[1]", "[0,4]") + "," + tensor("b", "F32", "[1]", "[0,4]"), four),
       "\"b\".data_offsets", "overlap"},
      {"bytes after the last tensor", one(tensor("w", "F32", "[1]", "[0,4]"), eight), "data_offsets",
       "cover"},
      {"data cut short", good.substr(0, good.size() - 1), "\"w\".data_offsets", "3 bytes"},
      {"data without tensors", safetensors("{}", four), "data_offsets", "cover"},
      {"a field too many",
       one("\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"strides\":[1]}", four),
       "\"w\".\"strides\"", "unknown"},
      {"a name with a line break", one(tensor("a\\nb", "F33", "[1]", "[0,4]"), four), "\"a\\nb\".dtype",
       "F33"},
      {"metadata a list", safetensors("{\"__metadata__\":[]}", ""), "__metadata__", "array"},
      {"metadata of numbers", safetensors("{\"__metadata__\":{\"format\":1}}", ""), "__metadata__.\"format\"",
       "1"},
  };
  CHECK(cases.size() >= 50);
  const TempDir dir;
  for (const Case& c : cases) {
    CAPTURE(c.name);
    const std::string path = dir.write("bad.safetensors", c.bytes);
    const std::string message = message_of([&] { SafetensorsFile::open(path); });
    CAPTURE(message);
    CHECK(message.rfind(path + ": ", 0) == 0);
    CHECK(contains(message, c.field));
    CHECK(contains(message, c.value));
  }
}

TEST_CASE(
    "mapped file: what is not a regular file is refused; an empty file and hints at any range are fine") {
  const TempDir dir;
  CHECK(contains(message_of([&] { MappedFile::open(dir / "none"); }), dir / "none: cannot open"));
  CHECK(contains(message_of([&] { MappedFile::open(dir.path()); }), "directory"));
  REQUIRE(::mkfifo((dir / "fifo").c_str(), 0600) == 0);
  CHECK(contains(message_of([&] { MappedFile::open(dir / "fifo"); }),
                 "pipe"));  // and does not wait for a writer
  const MappedFile empty = MappedFile::open(dir.write("empty", ""));
  CHECK(empty.size() == 0);

  const std::string bytes(10'000, 'q');
  MappedFile first = MappedFile::open(dir.write("file", bytes));
  MappedFile second = MappedFile::open(dir.write("other", "other"));
  second = std::move(first);
  CHECK(second.path() == dir / "file");
  REQUIRE(second.size() == bytes.size());
  CHECK(std::memcmp(second.data(), bytes.data(), bytes.size()) == 0);
}

TEST_CASE("safetensors: a mutated header either opens with sound entries or is an input error") {
  const std::string header =
      "{\"__metadata__\":{\"format\":\"pt\"}," + tensor("a", "BF16", "[3,4]", "[0,24]") + "," +
      tensor("b", "F32", "[2]", "[24,32]") + "," + tensor("c", "I64", "[0]", "[32,32]") + "}  ";
  const std::string good = safetensors(header, std::string(32, 'd'));
  const std::string alphabet = "{}[]\",:0123456789-.eE \\utFBI\xff\x80\n";
  const TempDir dir;
  CounterRng rng(20240607, stream_of("safetensors mutations"));
  int opened = 0;
  std::set<std::string> refusals;
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = good;
    const std::uint64_t edits = 1 + rng.below(3);
    for (std::uint64_t e = 0; e < edits; ++e) {
      const std::size_t at = rng.below(bytes.size());
      const char letter = alphabet[rng.below(alphabet.size())];
      switch (rng.below(6)) {
        case 0:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng.below(8)));
          break;
        case 1:
          bytes[at] = letter;
          break;
        case 2:
          bytes.insert(at, 1, letter);
          break;
        case 3:
          bytes.erase(at, 1 + rng.below(4));
          break;
        case 4:
          bytes.resize(at + 1);
          break;
        case 5:
          bytes.insert(at, bytes.substr(rng.below(bytes.size()), rng.below(40)));
          break;
      }
      // Mostly keep the length right, so that the header is what is tested.
      if (bytes.size() > 40 && rng.below(8) != 0) bytes.replace(0, 8, little_endian(bytes.size() - 8 - 32));
    }
    const std::string path = dir.write("fuzz", bytes);
    try {
      const SafetensorsFile file = SafetensorsFile::open(path);
      ++opened;
      std::size_t sum = 8 + file.header().size();
      for (const TensorEntry& entry : file.tensors()) {
        REQUIRE(entry.begin == sum);
        sum += entry.bytes;
        REQUIRE(file.find(entry.name) == &entry);
      }
      REQUIRE(sum == bytes.size());
    } catch (const InputError& error) {
      const std::string message = error.what();
      REQUIRE(message.rfind(path + ": ", 0) == 0);
      REQUIRE(message.find('\n') == std::string::npos);
      refusals.insert(message);
    }
  }
  CHECK(opened > 20);            // the loop reaches past the parser
  CHECK(refusals.size() > 200);  // and by many ways
}
