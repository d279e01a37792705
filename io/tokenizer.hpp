// Tokenizers in Hugging Face's tokenizer.json form: byte-pair encoding over bytes (Qwen, Llama 3) or over
// characters with byte fallback (Gemma).
//
// The file is untrusted: its size, ids, merges and expressions are bounded and checked, and a component or
// field that is not known is an InputError, never ignored. Not applied, because chat prompts spell out their
// special tokens and no command cuts or pads: post_processor, truncation, padding.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/utf8.hpp"

namespace tessera {

struct TokenizerParts;

class Tokenizer {
 public:
  // Reads a tokenizer.json. InputError "FILE: FIELD: ..." on anything wrong or unknown.
  static Tokenizer load(const std::string& path);
  // The same from a text; `file` names it in errors.
  static Tokenizer parse(std::string_view json_text, const std::string& file);

  // The ids of a text. Added tokens that are spelled out become their ids; BOS is never added. Ill-formed
  // UTF-8 counts as U+FFFD. Safe to call from many threads at once. InputError where the file's expressions
  // run into their limits, or where the vocabulary has neither a token nor an unknown token for a character.
  std::vector<std::int32_t> encode(std::string_view text) const;

  // The text of ids: bytes are joined, then what is not UTF-8 becomes U+FFFD. Ids without a token (a model
  // may have more rows than the vocabulary) give nothing.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const;

  std::int32_t vocab_size() const;  // largest id + 1, added tokens included
  std::optional<std::int32_t> token_id(std::string_view token) const;  // as the file spells it
  bool is_special(std::int32_t id) const;
  std::uint64_t fingerprint() const;  // XXH3 of the file's bytes

 private:
  friend class StreamDecoder;
  explicit Tokenizer(std::shared_ptr<const TokenizerParts> parts) : parts_(std::move(parts)) {}

  std::shared_ptr<const TokenizerParts> parts_;
};

// Decodes ids as they come. Each push returns what is certain so far, always complete UTF-8; flush ends the
// text and makes the decoder ready for another. All of it joined equals Tokenizer::decode.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens);
  std::string push(std::int32_t id);
  std::string push(std::span<const std::int32_t> ids);
  std::string flush();

 private:
  void append(std::int32_t id, std::string& out);

  std::shared_ptr<const TokenizerParts> parts_;
  bool skip_special_tokens_;
  std::size_t strip_left_;  // characters that may still be taken off the start
  Utf8Repair repair_;
};

}  // namespace tessera
