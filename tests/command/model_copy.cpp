#include "tests/command/model_copy.hpp"

#include <doctest/doctest.h>
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

namespace tessera::test {

namespace fs = std::filesystem;

TempFolder::TempFolder() {
  std::string pattern = (fs::temp_directory_path() / "tessera-command-XXXXXX").string();
  REQUIRE(::mkdtemp(pattern.data()) != nullptr);
  path_ = pattern;
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE_MESSAGE(file.is_open(), path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  REQUIRE_MESSAGE(file.good(), path);
}

void replace_text(std::string& text, const std::string& old_text, const std::string& new_text) {
  const std::size_t at = text.find(old_text);
  REQUIRE_MESSAGE(at != std::string::npos, old_text);
  text.replace(at, old_text.size(), new_text);
}

ModelCopy::ModelCopy(const std::string& fixture, const std::string& folder) : path_(folder + "/" + fixture) {
  fs::create_directory(path_);
  for (const auto& entry : fs::directory_iterator(fs::path(TESSERA_FIXTURES) / fixture)) {
    const std::string name = entry.path().filename().string();
    if (name == "expected.safetensors" || name == "tokenizer_cases.json") continue;
    fs::copy_file(entry.path(), fs::path(path_) / name);
  }
}

void ModelCopy::edit_text(const std::string& file, const std::function<void(std::string&)>& edit) const {
  std::string text = read_file(*this / file);
  edit(text);
  write_file(*this / file, text);
}

void ModelCopy::edit_json(const std::string& file, const std::function<void(nlohmann::json&)>& edit) const {
  edit_text(file, [&](std::string& text) {
    nlohmann::json root = nlohmann::json::parse(text);
    edit(root);
    text = root.dump();
  });
}

namespace {

std::uint64_t header_length(const std::string& bytes) {
  std::uint64_t length = 0;
  for (std::size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(bytes[i]);
  return length;
}

}  // namespace

void ModelCopy::edit_header_text(const std::string& file,
                                 const std::function<void(std::string&)>& edit) const {
  edit_text(file, [&](std::string& bytes) {
    const std::uint64_t length = header_length(bytes);
    std::string header = bytes.substr(8, length);
    edit(header);
    std::string size;
    for (int i = 0; i < 8; ++i) size += static_cast<char>(header.size() >> (8 * i));
    bytes = size + header + bytes.substr(8 + length);
  });
}

void ModelCopy::edit_header(const std::string& file, const std::function<void(nlohmann::json&)>& edit) const {
  edit_header_text(file, [&](std::string& header) {
    nlohmann::json root = nlohmann::json::parse(header);
    edit(root);
    header = root.dump();
  });
}

std::size_t ModelCopy::offset_of(const std::string& file, const std::string& tensor) const {
  const std::string bytes = read_file(*this / file);
  const std::uint64_t length = header_length(bytes);
  const nlohmann::json header = nlohmann::json::parse(bytes.substr(8, length));
  return 8 + length + header.at(tensor).at("data_offsets").at(0).get<std::size_t>();
}

}  // namespace tessera::test
