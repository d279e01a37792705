// One safetensors file (https://github.com/huggingface/safetensors): 8 bytes of header length, a JSON header,
// then the data of all tensors without gaps. The file is untrusted: the whole header is checked at open, so
// that afterwards every entry lies inside the file and its size is its shape times its dtype.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/mapped_file.hpp"
#include "runtime/core/dtype.hpp"

namespace tessera {

struct TensorEntry {
  std::string name;
  std::string_view file_dtype;      // as the file says: "BF16", "I64", "F8_E4M3"
  std::optional<DType> dtype;       // empty for dtypes that the format knows but we do not compute with
  std::vector<std::int64_t> shape;  // empty: a scalar; a 0 is allowed
  std::size_t begin = 0;            // offset of the first byte within the file
  std::size_t bytes = 0;

  std::int64_t elements() const;  // product of the shape; fits, as the file held it
};

class SafetensorsFile {
 public:
  // InputError for whatever the format forbids: see MODELS.md. Costs time by the header, not by the data.
  static SafetensorsFile open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  std::size_t size() const { return file_.size(); }
  const MappedFile& file() const { return file_; }
  std::string_view header() const;  // the JSON text with its padding

  const std::vector<TensorEntry>& tensors() const { return tensors_; }  // ordered by offset
  const TensorEntry* find(std::string_view name) const;                 // nullptr when absent
  const std::byte* data(const TensorEntry& entry) const {
    return file_.data() + entry.begin;
  }  // any alignment

  // The dtype to compute with; InputError naming file, tensor and dtype when there is none.
  DType dtype_of(const TensorEntry& entry) const;

 private:
  MappedFile file_;
  std::vector<TensorEntry> tensors_;
  std::unordered_map<std::string_view, std::size_t> index_;  // keys view tensors_[i].name, which never moves
};

// "[4096, 14336]": how messages write a shape.
std::string shape_text(const std::vector<std::int64_t>& shape);

}  // namespace tessera
