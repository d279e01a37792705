// Named arrays in HDF5 files that anybody may have written (h5py, Julia): what `tessera select` reads and
// writes, and `tessera bench` writes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

// A numeric array as fp32: float32 as it is, uint16 as the bits of bf16.
struct FloatArray {
  std::vector<std::int64_t> shape;
  std::vector<float> values;  // row-major
  bool is_bf16 = false;
};

// Reads datasets of one file. InputError names file and dataset, what was found and what is wanted. Shapes
// are bounded by what the file holds before anything is allocated.
class ArrayReader {
 public:
  explicit ArrayReader(const std::string& path);
  ~ArrayReader();
  bool has(const std::string& name) const;
  // dimensions: how many axes are wanted, each at least 1.
  FloatArray floats(const std::string& name, int dimensions) const;
  // One axis, perhaps empty, of int32, int64 or uint8.
  std::vector<std::int64_t> integers(const std::string& name) const;
  std::vector<double> doubles(const std::string& name) const;  // one axis of float64

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Collects arrays in memory and writes them in one step: a file is there whole or not at all (ResourceError).
class ArrayWriter {
 public:
  ArrayWriter();
  ~ArrayWriter();
  // name may have groups: "native/columns". shape may have zeros.
  void add(const std::string& name, const std::vector<std::int64_t>& shape, const std::vector<float>& values,
           std::string_view long_name);
  void add(const std::string& name, const std::vector<std::int64_t>& shape,
           const std::vector<std::int32_t>& values, std::string_view long_name);
  void add(const std::string& name, const std::vector<std::int64_t>& shape,
           const std::vector<std::int64_t>& values, std::string_view long_name);
  void add(const std::string& name, const std::vector<std::int64_t>& shape,
           const std::vector<std::uint8_t>& values, std::string_view long_name);
  void add(const std::string& name, const std::vector<std::int64_t>& shape, const std::vector<double>& values,
           std::string_view long_name);
  // One axis of texts.
  void add_text(const std::string& name, const std::vector<std::string>& values, std::string_view long_name);
  void attribute(const char* name, const std::string& value);  // of the file
  void write(const std::string& path);                         // once, last

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tessera
