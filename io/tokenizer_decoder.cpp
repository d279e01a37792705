#include "io/tokenizer_decoder.hpp"

#include "io/tokenizer_bpe.hpp"

namespace tessera {

namespace {

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// The byte that "<0xHH>" names, or -1.
int fallback_byte(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
  const int high = hex_digit(text[3]);
  const int low = hex_digit(text[4]);
  return high < 0 || low < 0 ? -1 : 16 * high + low;
}

std::string strip(std::string_view text, const DecoderChain::Strip& step) {
  for (std::size_t i = 0; i < step.start && text.substr(0, step.content.size()) == step.content; ++i) {
    text.remove_prefix(step.content.size());
  }
  for (std::size_t i = 0; i < step.stop && text.size() >= step.content.size() &&
                          text.substr(text.size() - step.content.size()) == step.content;
       ++i) {
    text.remove_suffix(step.content.size());
  }
  return std::string(text);
}

}  // namespace

std::string DecoderChain::token_bytes(std::string_view text) const {
  std::string bytes(text);
  for (const Step& step : steps_) {
    if (std::holds_alternative<ByteLevel>(step)) {
      if (auto spelled = from_byte_level(bytes)) bytes = std::move(*spelled);
    } else if (std::holds_alternative<ByteFallback>(step)) {
      if (const int byte = fallback_byte(bytes); byte >= 0) return std::string(1, static_cast<char>(byte));
    } else if (const auto* replace = std::get_if<Replace>(&step)) {
      bytes = replace->pattern.replace(bytes, replace->content);
    } else {
      bytes = strip(bytes, std::get<Strip>(step));
    }
  }
  return bytes;
}

}  // namespace tessera
