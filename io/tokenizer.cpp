#include "io/tokenizer.hpp"

#include "io/json.hpp"
#include "io/tokenizer_parts.hpp"

namespace tessera {

namespace {

constexpr std::size_t kMaxFileBytes = std::size_t{64} << 20;

// One call of encode: text goes down through added tokens, normalisation and pieces to ids.
class Encoding {
 public:
  explicit Encoding(const TokenizerParts& parts) : parts_(parts) {}

  std::vector<std::int32_t> run(std::string_view text) {
    for (const auto& part : parts_.raw_added.split(text)) {
      if (part.id >= 0) {
        ids_.push_back(part.id);
      } else {
        raw_stretch(text.substr(part.begin, part.end - part.begin));
      }
    }
    return std::move(ids_);
  }

 private:
  void raw_stretch(std::string_view text) {
    if (parts_.normalizer.empty()) return normalized_stretch(text);
    normalized_stretch(parts_.normalizer.apply(text));
  }

  void normalized_stretch(std::string_view text) {
    for (const auto& part : parts_.normalized_added.split(text)) {
      if (part.id >= 0) {
        ids_.push_back(part.id);
        continue;
      }
      parts_.pre_tokenizer.apply(text.substr(part.begin, part.end - part.begin),
                                 [&](std::string_view piece) { parts_.model.encode(piece, scratch_, ids_); });
    }
  }

  const TokenizerParts& parts_;
  BpeModel::Scratch scratch_;
  std::vector<std::int32_t> ids_;
};

}  // namespace

Tokenizer Tokenizer::load(const std::string& path) {
  return parse(read_text_file(path, kMaxFileBytes), path);
}

Tokenizer Tokenizer::parse(std::string_view json_text, const std::string& file) {
  return Tokenizer(load_tokenizer_parts(json_text, file));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  if (is_valid_utf8(text)) return Encoding(*parts_).run(text);
  return Encoding(*parts_).run(repair_utf8(text));
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const {
  StreamDecoder decoder(*this, skip_special_tokens);
  std::string text = decoder.push(ids);
  return text += decoder.flush();
}

std::int32_t Tokenizer::vocab_size() const {
  return static_cast<std::int32_t>(parts_->special.size());
}

std::optional<std::int32_t> Tokenizer::token_id(std::string_view token) const {
  std::int32_t id = parts_->model.vocabulary().find(token);
  if (id < 0) id = parts_->added.find(token);
  return id < 0 ? std::nullopt : std::optional(id);
}

bool Tokenizer::is_special(std::int32_t id) const {
  return id >= 0 && id < vocab_size() && parts_->special[static_cast<std::size_t>(id)];
}

std::uint64_t Tokenizer::fingerprint() const {
  return parts_->fingerprint;
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : parts_(tokenizer.parts_),
      skip_special_tokens_(skip_special_tokens),
      strip_left_(parts_->decoder.strip_count()) {}

void StreamDecoder::append(std::int32_t id, std::string& out) {
  const auto index = static_cast<std::size_t>(id);
  if (id < 0 || index >= parts_->special.size()) return;
  if (skip_special_tokens_ && parts_->special[index]) return;
  std::string_view bytes = parts_->token_bytes(id);
  while (strip_left_ > 0 && !bytes.empty()) {
    if (bytes.front() != parts_->decoder.strip_character()) {
      strip_left_ = 0;
      break;
    }
    bytes.remove_prefix(1);
    --strip_left_;
  }
  repair_.append(bytes, out);
}

std::string StreamDecoder::push(std::int32_t id) {
  std::string out;
  append(id, out);
  return out;
}

std::string StreamDecoder::push(std::span<const std::int32_t> ids) {
  std::string out;
  for (const std::int32_t id : ids) append(id, out);
  return out;
}

std::string StreamDecoder::flush() {
  std::string out;
  repair_.finish(out);
  strip_left_ = parts_->decoder.strip_count();
  return out;
}

}  // namespace tessera
