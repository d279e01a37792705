// A copy of a fixture's model directory, to spoil one thing of, in a temporary folder that goes with it.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace tessera::test {

class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& bytes);
void replace_text(std::string& text, const std::string& old_text,
                  const std::string& new_text);  // must be there once

class ModelCopy {
 public:
  // fixture: "qwen2-tied"; only what the command reads is copied.
  ModelCopy(const std::string& fixture, const std::string& folder);

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  void edit_json(const std::string& file, const std::function<void(nlohmann::json&)>& edit) const;
  void edit_text(const std::string& file, const std::function<void(std::string&)>& edit) const;
  // Rewrites the header of a safetensors file with its length, or the data behind it.
  void edit_header(const std::string& file, const std::function<void(nlohmann::json&)>& edit) const;
  void edit_header_text(const std::string& file, const std::function<void(std::string&)>& edit) const;
  // Where a tensor's bytes begin in its file.
  std::size_t offset_of(const std::string& file, const std::string& tensor) const;

 private:
  std::string path_;
};

}  // namespace tessera::test
