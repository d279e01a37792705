// From ids back to bytes: each token's bytes are fixed at load time, so that decoding is concatenation.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "io/tokenizer_pattern.hpp"

namespace tessera {

// The decoder chain of tokenizer.json. Everything but the strip at the start of the text acts on one token
// alone.
class DecoderChain {
 public:
  struct ByteLevel {};     // GPT-2's characters to bytes; a text with others stays as it is
  struct ByteFallback {};  // "<0xHH>" to one byte
  struct Replace {
    Pattern pattern;
    std::string content;
  };
  struct Strip {
    std::string content;  // one character
    std::size_t start;    // at most so many at the start
    std::size_t stop;     // and at the end
  };
  using Step = std::variant<ByteLevel, ByteFallback, Replace, Strip>;

  void add(Step step) { steps_.push_back(std::move(step)); }

  // The bytes of one token whose vocabulary text (valid UTF-8) is given.
  std::string token_bytes(std::string_view text) const;

  // After Fuse: up to `count` times the ASCII character is taken off the start of the whole text.
  void set_text_strip(char character, std::size_t count) {
    strip_character_ = character;
    strip_count_ = count;
  }
  char strip_character() const { return strip_character_; }
  std::size_t strip_count() const { return strip_count_; }

 private:
  std::vector<Step> steps_;
  char strip_character_ = ' ';
  std::size_t strip_count_ = 0;
};

}  // namespace tessera
