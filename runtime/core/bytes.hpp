// Plain values and arrays to and from bytes, for messages between ranks of one build.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "runtime/core/error.hpp"

namespace tessera {

class ByteWriter {
 public:
  template <typename T>
  requires std::is_trivially_copyable_v<T>
  void value(const T& value) { append(&value, sizeof(T)); }
  template <typename Container>
  void array(const Container& values) {
    value(static_cast<std::uint64_t>(values.size()));
    append(values.data(), values.size() * sizeof(*values.data()));
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  void append(const void* source, std::size_t count) {
    if (count == 0) return;
    bytes_.resize(bytes_.size() + count);
    std::memcpy(bytes_.data() + bytes_.size() - count, source, count);
  }

  std::vector<std::byte> bytes_;
};

class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <typename T>
  requires std::is_trivially_copyable_v<T>
  void value(T& value) {
    TESSERA_CHECK(bytes_.size() >= sizeof(T));
    std::memcpy(&value, bytes_.data(), sizeof(T));
    bytes_ = bytes_.subspan(sizeof(T));
  }
  template <typename Container>
  void array(Container& values) {
    std::uint64_t count = 0;
    value(count);
    constexpr std::size_t kElement = sizeof(typename Container::value_type);
    TESSERA_CHECK(count <= bytes_.size() / kElement);
    values.resize(count);
    if (count > 0) std::memcpy(values.data(), bytes_.data(), count * kElement);
    bytes_ = bytes_.subspan(count * kElement);
  }
  bool empty() const { return bytes_.empty(); }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace tessera
