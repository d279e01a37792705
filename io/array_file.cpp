#include "io/array_file.hpp"

#include <algorithm>

#include "io/file_output.hpp"
#include "io/hdf5.hpp"
#include "runtime/core/dtype.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

constexpr hsize_t kMostElements = hsize_t{1} << 34;

template <typename Work>
auto as_input_error(const std::string& path, const std::string& name, Work work) {
  try {
    return work();
  } catch (const Hdf5Failure& failure) {
    throw InputError("{}: {}: {}", path, name, failure.what());
  }
}

// The bytes that a dataset takes in its file: a shape that promises more than a well-packed file can hold is
// a lie.
void check_extent(const std::string& path, const std::string& name, const Hdf5Shape& shape, int dimensions) {
  if (static_cast<int>(shape.size()) != dimensions) {
    throw InputError("{}: {}: has {} dimensions, {} are wanted", path, name, shape.size(), dimensions);
  }
  hsize_t elements = 1;
  for (const hsize_t size : shape) {
    if (size == 0) throw InputError("{}: {}: has an empty dimension", path, name);
    if (size > kMostElements / elements) {
      throw InputError("{}: {}: holds more than {} values; cut it", path, name, kMostElements);
    }
    elements *= size;
  }
}

bool holds(hid_t dataset, Hdf5Type type, const std::string& name) {
  try {
    require_type(dataset, type, name);
    return true;
  } catch (const Hdf5Failure&) {
    return false;
  }
}

}  // namespace

struct ArrayReader::State {
  Hdf5Quiet quiet;
  std::string path;
  Hdf5Id file;
};

ArrayReader::ArrayReader(const std::string& path) : state_(std::make_unique<State>()) {
  state_->path = path;
  state_->file = as_input_error(path, "file", [&] { return open_file(path); });
}

ArrayReader::~ArrayReader() = default;

bool ArrayReader::has(const std::string& name) const {
  return as_input_error(state_->path, name, [&] {
    const std::size_t slash = name.find('/');  // HDF5 fails where the group itself is missing
    if (slash != std::string::npos && !has_link(state_->file.get(), name.substr(0, slash))) return false;
    return has_link(state_->file.get(), name);
  });
}

FloatArray ArrayReader::floats(const std::string& name, int dimensions) const {
  if (!has(name)) throw InputError("{}: {}: the dataset is missing", state_->path, name);
  return as_input_error(state_->path, name, [&] {
    const Hdf5Id dataset = open_dataset(state_->file.get(), name);
    const Hdf5Shape shape = shape_of(dataset.get(), name);
    check_extent(state_->path, name, shape, dimensions);
    FloatArray array;
    std::size_t elements = 1;
    for (const hsize_t size : shape) {
      array.shape.push_back(static_cast<std::int64_t>(size));
      elements *= size;
    }
    if (holds(dataset.get(), Hdf5Type::kFloat32, name)) {
      array.values.resize(elements);
      read_all(dataset.get(), Hdf5Type::kFloat32, array.values.data(), name);
    } else if (holds(dataset.get(), Hdf5Type::kUint16, name)) {
      array.is_bf16 = true;
      std::vector<std::uint16_t> bits(elements);
      read_all(dataset.get(), Hdf5Type::kUint16, bits.data(), name);
      array.values.resize(elements);
      convert_to_float(bits.data(), DType::kBF16, array.values.data(), elements);
    } else {
      throw InputError("{}: {}: must be float32, or bf16 as uint16", state_->path, name);
    }
    return array;
  });
}

namespace {

// All of a one-axis dataset, as T where its type is `type`.
template <typename T, typename Result>
bool read_axis(hid_t dataset, Hdf5Type type, const std::string& name, std::size_t count,
               std::vector<Result>* result) {
  if (!holds(dataset, type, name)) return false;
  std::vector<T> values(count);
  if (count > 0) read_all(dataset, type, values.data(), name);
  result->assign(values.begin(), values.end());
  return true;
}

std::size_t axis_length(const std::string& path, hid_t dataset, const std::string& name) {
  const Hdf5Shape shape = shape_of(dataset, name);
  if (shape.size() != 1 || shape[0] > kMostElements)
    throw InputError("{}: {}: must have one dimension", path, name);
  return shape[0];
}

}  // namespace

std::vector<std::int64_t> ArrayReader::integers(const std::string& name) const {
  if (!has(name)) throw InputError("{}: {}: the dataset is missing", state_->path, name);
  return as_input_error(state_->path, name, [&] {
    const Hdf5Id dataset = open_dataset(state_->file.get(), name);
    const std::size_t count = axis_length(state_->path, dataset.get(), name);
    std::vector<std::int64_t> result;
    const bool read = read_axis<std::int64_t>(dataset.get(), Hdf5Type::kInt64, name, count, &result) ||
                      read_axis<std::int32_t>(dataset.get(), Hdf5Type::kInt32, name, count, &result) ||
                      read_axis<std::uint8_t>(dataset.get(), Hdf5Type::kUint8, name, count, &result);
    if (!read) throw InputError("{}: {}: must be int64, int32 or uint8", state_->path, name);
    return result;
  });
}

std::vector<double> ArrayReader::doubles(const std::string& name) const {
  if (!has(name)) throw InputError("{}: {}: the dataset is missing", state_->path, name);
  return as_input_error(state_->path, name, [&] {
    const Hdf5Id dataset = open_dataset(state_->file.get(), name);
    const std::size_t count = axis_length(state_->path, dataset.get(), name);
    std::vector<double> result;
    if (!read_axis<double>(dataset.get(), Hdf5Type::kFloat64, name, count, &result)) {
      throw InputError("{}: {}: must be float64", state_->path, name);
    }
    return result;
  });
}

struct ArrayWriter::State {
  Hdf5Quiet quiet;
  Hdf5Image image;

  void make_group_of(const std::string& name) {
    const std::size_t slash = name.find('/');
    const std::string group = slash == std::string::npos ? "" : name.substr(0, slash);
    if (!group.empty() && !has_link(image.file(), group)) create_group(image.file(), group);
  }

  template <typename T>
  void add(const std::string& name, const std::vector<std::int64_t>& shape, const std::vector<T>& values,
           Hdf5Type type, std::string_view long_name) {
    std::size_t elements = 1;
    for (const std::int64_t size : shape) elements *= static_cast<std::size_t>(size);
    TESSERA_CHECK(elements == values.size());
    make_group_of(name);
    const Hdf5Shape extent(shape.begin(), shape.end());
    // Whole trailing axes would make chunks of many megabytes of (H, S, D).
    Hdf5Shape chunk = extent;
    if (chunk.size() == 3) chunk[0] = 1, chunk[1] = std::min<hsize_t>(chunk[1], 1024);
    if (chunk.size() < 3) chunk.clear();
    const Hdf5Id dataset = create_dataset(image.file(), name, type, extent, chunk);
    if (elements > 0) write_all(dataset.get(), type, values.data(), name);
    set_text_attribute(dataset.get(), "long_name", std::string(long_name));
  }
};

ArrayWriter::ArrayWriter() : state_(std::make_unique<State>()) {}
ArrayWriter::~ArrayWriter() = default;

void ArrayWriter::add(const std::string& name, const std::vector<std::int64_t>& shape,
                      const std::vector<float>& values, std::string_view long_name) {
  state_->add(name, shape, values, Hdf5Type::kFloat32, long_name);
}
void ArrayWriter::add(const std::string& name, const std::vector<std::int64_t>& shape,
                      const std::vector<std::int32_t>& values, std::string_view long_name) {
  state_->add(name, shape, values, Hdf5Type::kInt32, long_name);
}
void ArrayWriter::add(const std::string& name, const std::vector<std::int64_t>& shape,
                      const std::vector<std::int64_t>& values, std::string_view long_name) {
  state_->add(name, shape, values, Hdf5Type::kInt64, long_name);
}
void ArrayWriter::add(const std::string& name, const std::vector<std::int64_t>& shape,
                      const std::vector<std::uint8_t>& values, std::string_view long_name) {
  state_->add(name, shape, values, Hdf5Type::kUint8, long_name);
}
void ArrayWriter::add(const std::string& name, const std::vector<std::int64_t>& shape,
                      const std::vector<double>& values, std::string_view long_name) {
  state_->add(name, shape, values, Hdf5Type::kFloat64, long_name);
}

void ArrayWriter::add_text(const std::string& name, const std::vector<std::string>& values,
                           std::string_view long_name) {
  state_->make_group_of(name);
  const Hdf5Id dataset = create_dataset(state_->image.file(), name, Hdf5Type::kText, {values.size()}, {});
  if (!values.empty()) write_all_text(dataset.get(), values, name);
  set_text_attribute(dataset.get(), "long_name", std::string(long_name));
}

void ArrayWriter::attribute(const char* name, const std::string& value) {
  set_text_attribute(state_->image.file(), name, value);
}

void ArrayWriter::write(const std::string& path) {
  try {
    replace_file(path, state_->image.close());
  } catch (const Hdf5Failure& failure) {
    throw ResourceError("{}: {}", path, failure.what());
  }
}

}  // namespace tessera
