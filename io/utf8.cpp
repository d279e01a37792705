#include "io/utf8.hpp"

#include <cstdint>
#include <cstring>

namespace tessera {

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

enum class Sequence { kValid, kInvalid, kUnfinished };

struct Scan {
  Sequence kind;
  std::size_t size;  // bytes of the sequence, or of its maximal ill-formed part
};

// Classifies the sequence at the start of a non-empty text (Unicode standard, table 3-7).
Scan scan_sequence(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {Sequence::kValid, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Sequence::kInvalid, 1};
  const std::size_t size = utf8_size(text[0]);
  // Only the second byte has a narrower range: no overlong forms, no surrogates, nothing above U+10FFFF.
  unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (std::size_t i = 1; i < size; ++i) {
    if (i == text.size()) return {Sequence::kUnfinished, i};
    if (byte(i) < low || byte(i) > high) return {Sequence::kInvalid, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Sequence::kValid, size};
}

// Bytes at the start that are ASCII, counted in words of 8.
std::size_t ascii_prefix(std::string_view text) {
  std::size_t count = 0;
  for (; count + 8 <= text.size(); count += 8) {
    std::uint64_t word;
    std::memcpy(&word, text.data() + count, 8);
    if (word & 0x8080808080808080u) break;
  }
  while (count < text.size() && static_cast<unsigned char>(text[count]) < 0x80) ++count;
  return count;
}

// Appends the repaired text to out and returns how many bytes at the end are an unfinished sequence.
std::size_t repair_into(std::string_view text, std::string& out) {
  while (!text.empty()) {
    const std::size_t ascii = ascii_prefix(text);
    out.append(text.substr(0, ascii));
    text.remove_prefix(ascii);
    if (text.empty()) break;
    const Scan scan = scan_sequence(text);
    if (scan.kind == Sequence::kUnfinished) return text.size();
    out.append(scan.kind == Sequence::kValid ? text.substr(0, scan.size) : kReplacement);
    text.remove_prefix(scan.size);
  }
  return 0;
}

}  // namespace

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    text.remove_prefix(ascii_prefix(text));
    if (text.empty()) break;
    const Scan scan = scan_sequence(text);
    if (scan.kind != Sequence::kValid) return false;
    text.remove_prefix(scan.size);
  }
  return true;
}

std::string repair_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  if (repair_into(text, out) > 0) out += kReplacement;
  return out;
}

void Utf8Repair::append(std::string_view bytes, std::string& out) {
  if (pending_.empty()) {
    const std::size_t unfinished = repair_into(bytes, out);
    pending_.assign(bytes.substr(bytes.size() - unfinished));
    return;
  }
  pending_.append(bytes);
  const std::size_t unfinished = repair_into(pending_, out);
  pending_.erase(0, pending_.size() - unfinished);
}

void Utf8Repair::finish(std::string& out) {
  if (!pending_.empty()) out += kReplacement;
  pending_.clear();
}

CodePoint code_point_at(std::string_view text, std::size_t offset) {
  const auto bits = [&](std::size_t i) {
    return static_cast<char32_t>(static_cast<unsigned char>(text[offset + i]) & 0x3F);
  };
  const auto lead = static_cast<unsigned char>(text[offset]);
  switch (utf8_size(text[offset])) {
    case 1:
      return {lead, 1};
    case 2:
      return {(lead & 0x1Fu) << 6 | bits(1), 2};
    case 3:
      return {(lead & 0x0Fu) << 12 | bits(1) << 6 | bits(2), 3};
    default:
      return {(lead & 0x07u) << 18 | bits(1) << 12 | bits(2) << 6 | bits(3), 4};
  }
}

CodePoint code_point_before(std::string_view text, std::size_t offset) {
  std::size_t start = offset - 1;
  while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
  return code_point_at(text, start);
}

void append_utf8(std::string& out, char32_t value) {
  const auto put = [&](char32_t byte) { out += static_cast<char>(byte); };
  if (value < 0x80) {
    put(value);
  } else if (value < 0x800) {
    put(0xC0 | value >> 6);
    put(0x80 | (value & 0x3F));
  } else if (value < 0x10000) {
    put(0xE0 | value >> 12);
    put(0x80 | (value >> 6 & 0x3F));
    put(0x80 | (value & 0x3F));
  } else {
    put(0xF0 | value >> 18);
    put(0x80 | (value >> 12 & 0x3F));
    put(0x80 | (value >> 6 & 0x3F));
    put(0x80 | (value & 0x3F));
  }
}

bool is_white_space(char32_t value) {
  return (value >= 0x09 && value <= 0x0D) || value == 0x20 || value == 0x85 || value == 0xA0 ||
         value == 0x1680 || (value >= 0x2000 && value <= 0x200A) || value == 0x2028 || value == 0x2029 ||
         value == 0x202F || value == 0x205F || value == 0x3000;
}

}  // namespace tessera
