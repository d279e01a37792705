// Large arrays inside one line of JSON: raw little-endian bytes, deflated, in base64.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

std::string pack_bytes(const void* data, std::size_t bytes);

// Fills exactly `bytes` bytes at `data`; false when the text is not base64, not deflated data, or holds fewer
// or more bytes. Nothing is allocated beyond the size of the text.
bool unpack_bytes(std::string_view text, void* data, std::size_t bytes);

template <typename T>
std::string pack_array(const std::vector<T>& values) {
  return pack_bytes(values.data(), values.size() * sizeof(T));
}

}  // namespace tessera
