#include "io/safetensors.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "io/json.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr int kMaxHeaderDepth = 4;                      // file, tensor, list: 3 are used
constexpr std::size_t kMaxDimensions = 32;

struct FileDType {
  std::string_view name;
  unsigned bits;  // an element
  std::optional<DType> dtype;
};

// Every dtype of the format. Those without a DType are legal in a file, and refused only when asked for.
constexpr std::array<FileDType, 20> kFileDTypes = {{
    {"F32", 32, DType::kF32},     {"BF16", 16, DType::kBF16},   {"F16", 16, DType::kF16},
    {"F64", 64, std::nullopt},    {"I64", 64, std::nullopt},    {"U64", 64, std::nullopt},
    {"C64", 64, std::nullopt},    {"I32", 32, std::nullopt},    {"U32", 32, std::nullopt},
    {"I16", 16, std::nullopt},    {"U16", 16, std::nullopt},    {"I8", 8, std::nullopt},
    {"U8", 8, std::nullopt},      {"BOOL", 8, std::nullopt},    {"F8_E4M3", 8, std::nullopt},
    {"F8_E5M2", 8, std::nullopt}, {"F8_E8M0", 8, std::nullopt}, {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt}, {"F4", 4, std::nullopt},
}};

std::string quoted(const std::string& name) {
  return json_brief(nlohmann::json(name));
}

// The first 8 bytes, little-endian whatever the machine is.
std::uint64_t read_header_length(const MappedFile& file) {
  if (file.size() < kLengthBytes) {
    throw InputError(
        "{}: header length: the file has {} bytes, fewer than the {} of the header length; "
        "download it again",
        file.path(), file.size(), kLengthBytes);
  }
  std::uint64_t length = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;) {
    length = (length << 8) | std::to_integer<std::uint64_t>(file.data()[i]);
  }
  if (length > kMaxHeaderBytes) {
    throw InputError("{}: header length: {} is over the format's limit of {}; this is not a safetensors file",
                     file.path(), length, kMaxHeaderBytes);
  }
  if (length > file.size() - kLengthBytes) {
    throw InputError(
        "{}: header length: {} reaches past the end of the file ({} bytes); it was cut short: "
        "download it again",
        file.path(), length, file.size());
  }
  return length;
}

const FileDType& parse_file_dtype(const nlohmann::json& tensor, const std::string& name,
                                  const std::string& path) {
  const auto found = tensor.find("dtype");
  if (found == tensor.end()) throw InputError("{}: {}.dtype: missing, expected a dtype", path, quoted(name));
  const nlohmann::json& value = *found;
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    for (const FileDType& known : kFileDTypes) {
      if (text == known.name) return known;
    }
  }
  throw InputError("{}: {}.dtype: {} is not a dtype of safetensors (F32, BF16, F16, ...)", path, quoted(name),
                   json_brief(value));
}

// A list of whole numbers in [0, max].
std::vector<std::int64_t> parse_sizes(const nlohmann::json& tensor, const char* field,
                                      const std::string& name, const std::string& path,
                                      std::size_t max_count) {
  const auto found = tensor.find(field);
  if (found == tensor.end() || !found->is_array()) {
    throw InputError("{}: {}.{}: found {}, expected a list of whole numbers", path, quoted(name), field,
                     found == tensor.end() ? "nothing" : json_brief(*found));
  }
  if (found->size() > max_count) {
    throw InputError("{}: {}.{}: {} entries are more than the {} allowed", path, quoted(name), field,
                     found->size(), max_count);
  }
  std::vector<std::int64_t> sizes;
  sizes.reserve(found->size());
  for (const nlohmann::json& value : *found) {
    // The parser makes every non-negative integer that fits 64 bits unsigned, and a larger one a float.
    if (!value.is_number_unsigned() ||
        value.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      throw InputError("{}: {}.{}: found {}, expected whole numbers from 0 to 2^63 - 1", path, quoted(name),
                       field, json_brief(value));
    }
    sizes.push_back(static_cast<std::int64_t>(value.get<std::uint64_t>()));
  }
  return sizes;
}

// Bits of the whole tensor; InputError when they do not fit or do not fill whole bytes.
std::uint64_t tensor_bytes(const std::vector<std::int64_t>& shape, const FileDType& dtype,
                           const std::string& name, const std::string& path) {
  constexpr std::uint64_t kMaxBits = std::uint64_t{1} << 62;
  std::uint64_t bits = dtype.bits;
  // A zero anywhere makes the tensor empty, whatever the other sizes are.
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  for (const std::int64_t size : shape) {
    if (static_cast<std::uint64_t>(size) > kMaxBits / bits) {
      throw InputError("{}: {}.shape: {} of {} overflows the size of a tensor", path, quoted(name),
                       shape_text(shape), dtype.name);
    }
    bits *= static_cast<std::uint64_t>(size);
  }
  if (bits % 8 != 0) {
    throw InputError("{}: {}.shape: {} of {} is {} bits, not whole bytes", path, quoted(name),
                     shape_text(shape), dtype.name, bits);
  }
  return bits / 8;
}

TensorEntry parse_tensor(const std::string& name, const nlohmann::json& tensor, std::size_t data_begin,
                         std::size_t data_bytes, const std::string& path) {
  if (!tensor.is_object()) {
    throw InputError("{}: {}: found {}, expected an object with dtype, shape and data_offsets", path,
                     quoted(name), json_brief(tensor));
  }
  for (const auto& [key, value] : tensor.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      throw InputError("{}: {}.{}: the field is unknown; expected dtype, shape and data_offsets", path,
                       quoted(name), quoted(key));
    }
  }
  const FileDType& dtype = parse_file_dtype(tensor, name, path);
  TensorEntry entry;
  entry.name = name;
  entry.file_dtype = dtype.name;
  entry.dtype = dtype.dtype;
  entry.shape = parse_sizes(tensor, "shape", name, path, kMaxDimensions);
  const std::vector<std::int64_t> offsets = parse_sizes(tensor, "data_offsets", name, path, 2);
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    throw InputError("{}: {}.data_offsets: found {}, expected [begin, end] with begin <= end", path,
                     quoted(name), shape_text(offsets));
  }
  if (static_cast<std::uint64_t>(offsets[1]) > data_bytes) {
    throw InputError(
        "{}: {}.data_offsets: {} reaches past the {} bytes of data in the file; it was cut short: "
        "download it again",
        path, quoted(name), shape_text(offsets), data_bytes);
  }
  entry.begin = data_begin + static_cast<std::size_t>(offsets[0]);
  entry.bytes = static_cast<std::size_t>(offsets[1] - offsets[0]);
  const std::uint64_t expected = tensor_bytes(entry.shape, dtype, name, path);
  if (expected != entry.bytes) {
    throw InputError("{}: {}.data_offsets: {} spans {} bytes, but shape {} of {} takes {}", path,
                     quoted(name), shape_text(offsets), entry.bytes, shape_text(entry.shape), dtype.name,
                     expected);
  }
  return entry;
}

void check_metadata(const nlohmann::json& metadata, const std::string& path) {
  if (!metadata.is_object()) {
    throw InputError("{}: __metadata__: found {}, expected an object of strings", path, json_brief(metadata));
  }
  for (const auto& [key, value] : metadata.items()) {
    if (!value.is_string()) {
      throw InputError("{}: __metadata__.{}: found {}, expected a string", path, quoted(key),
                       json_brief(value));
    }
  }
}

// Tensors, ordered by offset, must follow one another from the first byte of data to the last of the file.
void check_coverage(const std::vector<TensorEntry>& tensors, std::size_t data_begin, const MappedFile& file) {
  std::size_t end = data_begin;
  const TensorEntry* previous = nullptr;
  for (const TensorEntry& entry : tensors) {
    if (entry.begin != end) {
      throw InputError(
          "{}: {}.data_offsets: begins at byte {} of the data, but {} at byte {}: tensors must follow "
          "one another without {}",
          file.path(), quoted(entry.name), entry.begin - data_begin,
          previous == nullptr ? "the data begins" : quoted(previous->name) + " ends", end - data_begin,
          entry.begin < end ? "overlap" : "gaps");
    }
    end += entry.bytes;
    previous = &entry;
  }
  if (end != file.size()) {
    throw InputError(
        "{}: data_offsets: the tensors end at byte {}, but the file has {} bytes; they must cover it "
        "exactly",
        file.path(), end, file.size());
  }
}

}  // namespace

std::int64_t TensorEntry::elements() const {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  SafetensorsFile result;
  result.file_ = MappedFile::open(path);
  const std::size_t header_bytes = read_header_length(result.file_);
  const std::string_view header(reinterpret_cast<const char*>(result.file_.data()) + kLengthBytes,
                                header_bytes);
  if (header.empty() || header.front() != '{') {
    throw InputError("{}: header: begins with {}, expected '{{'; this is not a safetensors file", path,
                     header.empty() ? "nothing" : quoted(std::string(header.substr(0, 1))));
  }

  const nlohmann::json root = parse_json(header, path, kMaxHeaderDepth);
  const std::size_t data_begin = kLengthBytes + header_bytes;
  for (const auto& [name, value] : root.items()) {
    if (name == "__metadata__") {
      check_metadata(value, path);
    } else {
      result.tensors_.push_back(
          parse_tensor(name, value, data_begin, result.file_.size() - data_begin, path));
    }
  }
  // Empty tensors share an offset with their neighbours: they come first.
  std::sort(result.tensors_.begin(), result.tensors_.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::tie(a.begin, a.bytes, a.name) < std::tie(b.begin, b.bytes, b.name);
  });
  check_coverage(result.tensors_, data_begin, result.file_);

  result.index_.reserve(result.tensors_.size());
  for (std::size_t i = 0; i < result.tensors_.size(); ++i) result.index_.emplace(result.tensors_[i].name, i);
  return result;
}

std::string_view SafetensorsFile::header() const {
  const auto* bytes = reinterpret_cast<const char*>(file_.data());
  return {bytes + kLengthBytes, static_cast<std::size_t>(read_header_length(file_))};
}

const TensorEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

DType SafetensorsFile::dtype_of(const TensorEntry& entry) const {
  if (!entry.dtype) {
    throw InputError("{}: {}: dtype {} cannot be computed with; convert it to F32, BF16 or F16", path(),
                     quoted(entry.name), entry.file_dtype);
  }
  return *entry.dtype;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += fmt::format("{}{}", i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

}  // namespace tessera
