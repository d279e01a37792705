// UTF-8 as the tokenizer needs it: validation, repair with U+FFFD (one for each maximal ill-formed part, as
// the Unicode standard recommends and as Rust and Python do), and code points of text that is known to be
// valid.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace tessera {

bool is_valid_utf8(std::string_view text);

// The text with every ill-formed part replaced by U+FFFD.
std::string repair_utf8(std::string_view text);

// Repairs a text that arrives in pieces cut anywhere: emits what is complete, holds back at most 3 bytes.
class Utf8Repair {
 public:
  void append(std::string_view bytes, std::string& out);
  void finish(std::string& out);  // an unfinished sequence becomes one U+FFFD

 private:
  std::string pending_;
};

struct CodePoint {
  char32_t value;
  std::size_t size;  // bytes, 1 to 4
};

// The code point that starts at text[offset]; the text must be valid UTF-8.
CodePoint code_point_at(std::string_view text, std::size_t offset);

// The code point that ends before text[offset], offset > 0; the text must be valid UTF-8.
CodePoint code_point_before(std::string_view text, std::size_t offset);

void append_utf8(std::string& out, char32_t value);

// Bytes in the sequence that a lead byte of valid UTF-8 starts.
inline std::size_t utf8_size(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

// The Unicode property White_Space.
bool is_white_space(char32_t value);

}  // namespace tessera
