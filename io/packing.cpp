#include "io/packing.hpp"

#include <zlib.h>

#include <array>
#include <bit>
#include <cstdint>

#include "runtime/core/error.hpp"

namespace tessera {

static_assert(std::endian::native == std::endian::little, "packed arrays are little-endian");

namespace {

constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr std::uint8_t kNotADigit = 255;

constexpr std::array<std::uint8_t, 256> make_digit_values() {
  std::array<std::uint8_t, 256> values{};
  for (auto& value : values) value = kNotADigit;
  for (std::size_t i = 0; i < kDigits.size(); ++i) {
    values[static_cast<unsigned char>(kDigits[i])] = static_cast<std::uint8_t>(i);
  }
  return values;
}
constexpr auto kDigitValues = make_digit_values();

std::string to_base64(const std::vector<std::uint8_t>& bytes) {
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t count = std::min<std::size_t>(3, bytes.size() - i);
    std::uint32_t group = 0;
    for (std::size_t j = 0; j < 3; ++j) group = group << 8 | (j < count ? bytes[i + j] : 0u);
    for (std::size_t j = 0; j < 4; ++j) text += j <= count ? kDigits[group >> (18 - 6 * j) & 63] : '=';
  }
  return text;
}

bool from_base64(std::string_view text, std::vector<std::uint8_t>& bytes) {
  if (text.size() % 4 != 0) return false;
  bytes.clear();
  bytes.reserve(text.size() / 4 * 3);
  for (std::size_t i = 0; i < text.size(); i += 4) {
    std::size_t count = 3;
    if (i + 4 == text.size() && text[i + 3] == '=') count = text[i + 2] == '=' ? 1 : 2;
    std::uint32_t group = 0;
    for (std::size_t j = 0; j < 4; ++j) {
      const std::uint8_t value = j <= count ? kDigitValues[static_cast<unsigned char>(text[i + j])] : 0;
      if (value == kNotADigit) return false;
      group = group << 6 | value;
    }
    for (std::size_t j = 0; j < count; ++j) bytes.push_back(static_cast<std::uint8_t>(group >> (16 - 8 * j)));
  }
  return true;
}

}  // namespace

std::string pack_bytes(const void* data, std::size_t bytes) {
  if (bytes == 0) return "";
  uLongf size = compressBound(static_cast<uLong>(bytes));
  std::vector<std::uint8_t> deflated(size);
  const int status =
      compress2(deflated.data(), &size, static_cast<const Bytef*>(data), static_cast<uLong>(bytes), 4);
  TESSERA_CHECK(status == Z_OK);
  deflated.resize(size);
  return to_base64(deflated);
}

bool unpack_bytes(std::string_view text, void* data, std::size_t bytes) {
  if (bytes == 0) return text.empty();
  std::vector<std::uint8_t> deflated;
  if (!from_base64(text, deflated)) return false;
  uLongf size = static_cast<uLongf>(bytes);
  uLong used = static_cast<uLong>(deflated.size());
  const int status = uncompress2(static_cast<Bytef*>(data), &size, deflated.data(), &used);
  return status == Z_OK && size == bytes && used == deflated.size();
}

}  // namespace tessera
