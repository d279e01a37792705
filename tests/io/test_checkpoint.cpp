// Model directories: one file, shards by index, and indexes that must not be believed.
#include <doctest/doctest.h>

#include <cstring>
#include <filesystem>

#include "io/checkpoint.hpp"
#include "tests/io/checkpoint_files.hpp"

using namespace tessera;
using namespace tessera::test;

namespace {

// F32 tensors of one value each, named by the list.
std::string shard(const std::vector<std::string>& names, char fill = 'x', std::size_t floats = 1) {
  std::string header = "{";
  std::size_t offset = 0;
  for (const std::string& name : names) {
    header += (offset == 0 ? "\"" : ",\"") + name + "\":{\"dtype\":\"F32\",\"shape\":[" +
              std::to_string(floats) + "],\"data_offsets\":[" + std::to_string(offset) + "," +
              std::to_string(offset + 4 * floats) + "]}";
    offset += 4 * floats;
  }
  return safetensors(header + "}", std::string(offset, fill));
}

std::string weight_map(const std::string& entries) {
  return "{\"metadata\":{\"total_size\":999},\"weight_map\":{" + entries + "}}";
}

constexpr const char* kIndex = "model.safetensors.index.json";

}  // namespace

TEST_CASE("checkpoint: a single file") {
  const TempDir dir;
  const std::string bytes = shard({"b", "a"});
  dir.write("model.safetensors", bytes);
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  CHECK(checkpoint.names() == std::vector<std::string>{"a", "b"});
  CHECK(checkpoint.total_bytes() == bytes.size());
  CHECK(checkpoint.files().size() == 1);
  const auto found = checkpoint.find("a");
  REQUIRE(found.has_value());
  CHECK(found->entry->name == "a");
  CHECK(std::memcmp(found->data(), "xxxx", 4) == 0);
  CHECK_FALSE(checkpoint.find("c").has_value());
}

TEST_CASE("checkpoint: a single file wins over an index, as in transformers") {
  const TempDir dir;
  dir.write("model.safetensors", shard({"one"}));
  dir.write("m-1.safetensors", shard({"a"}, 'a'));
  dir.write(kIndex, weight_map(R"("a":"m-1.safetensors")"));
  CHECK(Checkpoint::open(dir.path()).names() == std::vector<std::string>{"one"});
}

TEST_CASE("checkpoint: shards; what the index leaves out is still found") {
  const TempDir dir;
  dir.write("m-2.safetensors", shard({"c", "unnamed"}, 'c'));
  dir.write("m-1.safetensors", shard({"a", "b"}, 'a'));
  dir.write(kIndex, weight_map(R"("c":"m-2.safetensors","a":"m-1.safetensors","b":"m-1.safetensors")"));
  Checkpoint opened = Checkpoint::open(dir.path());
  const Checkpoint checkpoint = std::move(opened);  // tensors point into files, which do not move
  CHECK(checkpoint.names() == std::vector<std::string>{"a", "b", "c", "unnamed"});
  REQUIRE(checkpoint.files().size() == 2);
  CHECK(checkpoint.files()[0].path() == dir / "m-1.safetensors");
  CHECK(checkpoint.find("b")->file == &checkpoint.files()[0]);
  CHECK(checkpoint.find("c")->file == &checkpoint.files()[1]);
  CHECK(std::memcmp(checkpoint.find("c")->data(), "cccc", 4) == 0);
}

TEST_CASE("checkpoint: links in the directory are followed, as in the Hugging Face cache") {
  const TempDir blobs, dir;
  blobs.write("0123abcd", shard({"a"}));
  std::filesystem::create_symlink(blobs / "0123abcd", dir / "model.safetensors");
  CHECK(Checkpoint::open(dir.path()).find("a").has_value());
}

TEST_CASE("checkpoint: bad directories and indexes are refused with file and field") {
  struct Case {
    const char* name;
    std::string index;
    const char* file;  // relative to the directory
    const char* field;
    const char* value = "";
  };
  const std::vector<Case> cases = {
      {"not JSON", "weight_map", kIndex, "byte", "not valid JSON"},
      {"a list", "[]", kIndex, "", "object"},
      {"no weight_map", "{}", kIndex, "weight_map", "missing"},
      {"weight_map a list", "{\"weight_map\":[]}", kIndex, "weight_map", "array"},
      {"weight_map empty", weight_map(""), kIndex, "weight_map", "at least one"},
      {"a number for a file", weight_map("\"a\":1"), kIndex, "weight_map.\"a\"", "1"},
      {"an absolute path", weight_map("\"a\":\"/etc/passwd\""), kIndex, "weight_map.\"a\"", "/etc/passwd"},
      {"the parent", weight_map("\"a\":\"../m-1.safetensors\""), kIndex, "weight_map.\"a\"", "../m-1"},
      {"only the parent", weight_map("\"a\":\"..\""), kIndex, "weight_map.\"a\"", ".."},
      {"a folder below", weight_map("\"a\":\"sub/m-1.safetensors\""), kIndex, "weight_map.\"a\"", "sub/"},
      {"an empty name", weight_map("\"a\":\"\""), kIndex, "weight_map.\"a\"", "plain file name"},
      {"a NUL in a name", weight_map("\"a\":\"m-1.safetensors\\u0000.txt\""), kIndex, "weight_map.\"a\"",
       "plain"},
      {"a name too long", weight_map("\"a\":\"" + std::string(300, 'm') + "\""), kIndex, "weight_map.\"a\"",
       "plain"},
      {"a file that is not there", weight_map("\"a\":\"m-9.safetensors\""), kIndex, "weight_map",
       "m-9.safetensors"},
      {"the directory itself", weight_map("\"a\":\".\""), kIndex, "weight_map.\"a\"", "plain"},
      {"a tensor its file lacks", weight_map(R"("a":"m-1.safetensors","z":"m-1.safetensors")"),
       "m-1.safetensors", "\"z\"", "missing"},
      {"a tensor in another file",
       weight_map(
           R"("a":"m-1.safetensors","b":"m-1.safetensors","c":"m-1.safetensors","d":"m-2.safetensors")"),
       "m-1.safetensors", "\"c\"", "missing"},
      {"a tensor named twice", weight_map(R"("a":"m-1.safetensors","a":"m-1.safetensors")"), kIndex, "\"a\"",
       "twice"},
      {"a tensor in two files", weight_map(R"("a":"m-1.safetensors","e":"m-3.safetensors")"),
       "m-3.safetensors", "\"a\"", "m-1.safetensors"},
      {"a bad shard", weight_map("\"a\":\"bad.safetensors\""), "bad.safetensors", "header length"},
      {"a directory for a shard", weight_map("\"a\":\"folder\""), "folder", "directory"},
      {"invalid UTF-8", weight_map("\"a\xc3\":\"m-1.safetensors\""), kIndex, "byte", "not valid JSON"},
      {"deep nesting", std::string(100'000, '['), kIndex, "nesting"},
  };
  const TempDir dir;
  dir.write("m-1.safetensors", shard({"a", "b"}));
  dir.write("m-2.safetensors", shard({"c", "d"}));
  dir.write("m-3.safetensors", shard({"e", "a"}));
  dir.write("bad.safetensors", "short");
  std::filesystem::create_directory(dir / "folder");
  for (const Case& c : cases) {
    CAPTURE(c.name);
    dir.write(kIndex, c.index);
    const std::string message = message_of([&] { Checkpoint::open(dir.path()); });
    CAPTURE(message);
    CHECK(message.rfind(dir / c.file + ": ", 0) == 0);
    CHECK(contains(message, c.field));
    CHECK(contains(message, c.value));
  }
}

TEST_CASE("checkpoint: a directory without weights, or none at all") {
  const TempDir dir;
  CHECK(contains(message_of([&] { Checkpoint::open(dir.path()); }), dir.path() + ": model.safetensors"));
  CHECK(contains(message_of([&] { Checkpoint::open(dir / "none"); }), dir / "none: "));
  CHECK(contains(message_of([&] { Checkpoint::open(dir.write("file", "x")); }), "it is a file"));
}

TEST_CASE("checkpoint: the fingerprint sees sizes, headers and sampled pages, not the directory") {
  const std::size_t floats = 1 << 20;  // 4 MiB: pages are sampled, not read whole
  const TempDir first, second;
  const std::string bytes = shard({"a"}, 'x', floats);
  first.write("model.safetensors", bytes);
  second.write("model.safetensors", bytes);
  const std::uint64_t reference = Checkpoint::open(first.path()).fingerprint();
  CHECK(Checkpoint::open(second.path()).fingerprint() == reference);

  const auto fingerprint_of = [&](const std::string& changed) {
    second.write("model.safetensors", changed);
    return Checkpoint::open(second.path()).fingerprint();
  };
  std::string changed = bytes;
  changed.back() = 'y';  // the last byte of the file
  CHECK(fingerprint_of(changed) != reference);
  CHECK(fingerprint_of(shard({"a"}, 'y', floats)) != reference);
  CHECK(fingerprint_of(shard({"b"}, 'x', floats)) != reference);
  CHECK(fingerprint_of(shard({"a"}, 'x', floats + 1)) != reference);

  // A tensor of its own size anywhere in the file touches a sampled page: 64 pages, one every 64 KiB here.
  changed = bytes;
  std::fill_n(changed.begin() + 1'500'000, 70'000, 'z');
  CHECK(fingerprint_of(changed) != reference);

  const std::string small = shard({"a"}, 'x', 10);  // small files are read whole
  const std::uint64_t small_reference = fingerprint_of(small);
  for (std::size_t i = small.size() - 40; i < small.size(); ++i) {
    changed = small;
    changed[i] = 'y';
    CHECK(fingerprint_of(changed) != small_reference);
  }
}
