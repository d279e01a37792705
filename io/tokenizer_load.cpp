// Reads tokenizer.json into parts. Every field of a component is either used, known to change nothing here,
// or refused.
#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "io/json.hpp"
#include "io/tokenizer_parts.hpp"
#include "io/utf8.hpp"
#include "runtime/core/error.hpp"

namespace tessera {

using nlohmann::json;

namespace {

constexpr std::int32_t kMaxId = 2'000'000;
constexpr std::size_t kMaxMerges = 4'000'000;
constexpr std::size_t kMaxAdded = 100'000;
constexpr std::size_t kMaxAddedBytes = 512;       // of one added token
constexpr std::size_t kMaxComponentBytes = 1024;  // of a text that a component inserts
constexpr std::size_t kMaxDecodedBytes = std::size_t{256} << 20;
constexpr std::string_view kGpt2Expression =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

class Loader {
 public:
  Loader(const json& root, const std::string& file) : root_(root), file_(file) {}

  std::shared_ptr<TokenizerParts> run() {
    check_fields(root_, "",
                 {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                  "post_processor", "decoder", "model"});
    if (const json* version = json_find(root_, "version"); version != nullptr && *version != "1.0") {
      throw_json_field(file_, "version", *version, "\"1.0\"");
    }
    normalizer(component(root_, "normalizer"), "normalizer");
    pre_tokenizer(component(root_, "pre_tokenizer"), "pre_tokenizer");
    post_processor(component(root_, "post_processor"), "post_processor");
    decoder(json_field(root_, "decoder", file_), "decoder");
    model(json_object(root_, "model", file_));
    added_tokens();
    token_tables();
    return parts_;
  }

 private:
  // -- helpers ------------------------------------------------------------------------------------

  // A component, or nullptr where it is absent or null.
  static const json* component(const json& parent, const char* key) {
    const json* value = json_find(parent, key);
    return value == nullptr || value->is_null() ? nullptr : value;
  }

  static std::string join(const std::string& path, std::string_view key) {
    return path.empty() ? std::string(key) : fmt::format("{}.{}", path, key);
  }

  [[noreturn]] void refuse(const std::string& path, const json& found, std::string_view expected) const {
    throw_json_field(file_, path, found, expected);
  }

  void check_fields(const json& object, const std::string& path,
                    std::initializer_list<std::string_view> known) const {
    for (const auto& [key, value] : object.items()) {
      if (std::find(known.begin(), known.end(), key) == known.end()) {
        throw InputError("{}: {}: unknown field with the value {}; it may change ids, so it is not ignored",
                         file_, join(path, brief_key(key)), json_brief(value));
      }
    }
  }
  static std::string brief_key(const std::string& key) {
    const bool plain = key.size() <= 40 && !key.empty() &&
                       std::all_of(key.begin(), key.end(), [](char c) { return c > 0x20 && c < 0x7F; });
    return plain ? key : json_brief(json(key));
  }

  // Typed fields of a component: `path` is the component's, for the message.
  const json& field(const json& object, const std::string& path, const char* key) const {
    const auto found = object.find(key);
    if (found == object.end()) throw InputError("{}: {}: the field is missing", file_, join(path, key));
    return *found;
  }
  std::string text(const json& object, const std::string& path, const char* key) const {
    const json& value = field(object, path, key);
    if (!value.is_string()) refuse(join(path, key), value, "a string");
    return value.get<std::string>();
  }
  std::string bounded_text(const json& object, const std::string& path, const char* key) const {
    std::string value = text(object, path, key);
    if (value.size() > kMaxComponentBytes)
      refuse(join(path, key), value, fmt::format("at most {} bytes", kMaxComponentBytes));
    return value;
  }
  bool flag(const json& object, const std::string& path, const char* key, bool fallback) const {
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) return fallback;
    if (!found->is_boolean()) refuse(join(path, key), *found, "true or false");
    return found->get<bool>();
  }
  std::int64_t integer(const json& object, const std::string& path, const char* key, std::int64_t max) const {
    const json& value = field(object, path, key);
    const bool fits = value.is_number_integer() && value >= 0 && value <= max;
    if (!fits) refuse(join(path, key), value, fmt::format("an integer from 0 to {}", max));
    return value.get<std::int64_t>();
  }
  const json& list(const json& object, const std::string& path, const char* key) const {
    const json& value = field(object, path, key);
    if (!value.is_array()) refuse(join(path, key), value, "an array");
    return value;
  }
  std::string type_of(const json& value, const std::string& path) const {
    if (!value.is_object()) refuse(path, value, "an object with a type");
    return text(value, path, "type");
  }
  [[noreturn]] void unknown_type(const json& value, const std::string& path, std::string_view known) const {
    refuse(join(path, "type"), value.at("type"), fmt::format("one of {}", known));
  }

  Pattern pattern(const json& object, const std::string& path) const {
    const json& value = field(object, path, "pattern");
    const std::string here = join(path, "pattern");
    if (value.is_object() && value.size() == 1) {
      if (value.contains("Regex"))
        return Pattern::regex(text(value, here, "Regex"), file_, join(here, "Regex"));
      if (value.contains("String"))
        return Pattern::literal(text(value, here, "String"), file_, join(here, "String"));
    }
    refuse(here, value, "an object with one field, Regex or String");
  }

  // -- components ---------------------------------------------------------------------------------

  void normalizer(const json* value, const std::string& path) {
    if (value == nullptr) return;
    const std::string type = type_of(*value, path);
    Normalizer& out = parts_->normalizer;
    if (type == "Sequence") {
      check_fields(*value, path, {"type", "normalizers"});
      const json& steps = list(*value, path, "normalizers");
      for (std::size_t i = 0; i < steps.size(); ++i)
        normalizer(&steps[i], fmt::format("{}.normalizers.{}", path, i));
    } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
      check_fields(*value, path, {"type"});
      out.add(type == "NFC"    ? UnicodeForm::kNfc
              : type == "NFD"  ? UnicodeForm::kNfd
              : type == "NFKC" ? UnicodeForm::kNfkc
                               : UnicodeForm::kNfkd);
    } else if (type == "Replace") {
      check_fields(*value, path, {"type", "pattern", "content"});
      out.add(Normalizer::Replace{pattern(*value, path), bounded_text(*value, path, "content")});
    } else if (type == "Prepend") {
      check_fields(*value, path, {"type", "prepend"});
      out.add(Normalizer::Prepend{bounded_text(*value, path, "prepend")});
    } else {
      unknown_type(*value, path, "NFC, NFD, NFKC, NFKD, Replace, Prepend, Sequence");
    }
  }

  void pre_tokenizer(const json* value, const std::string& path) {
    if (value == nullptr) return;
    const std::string type = type_of(*value, path);
    if (byte_level_) {
      throw InputError("{}: {}: found {} after ByteLevel, expected ByteLevel to be the last step", file_,
                       path, type);
    }
    PreTokenizer& out = parts_->pre_tokenizer;
    if (type == "Sequence") {
      check_fields(*value, path, {"type", "pretokenizers"});
      const json& steps = list(*value, path, "pretokenizers");
      for (std::size_t i = 0; i < steps.size(); ++i)
        pre_tokenizer(&steps[i], fmt::format("{}.pretokenizers.{}", path, i));
    } else if (type == "Split") {
      check_fields(*value, path, {"type", "pattern", "behavior", "invert"});
      out.add(PreTokenizer::Split{pattern(*value, path), behavior(*value, path),
                                  flag(*value, path, "invert", false)});
    } else if (type == "ByteLevel") {
      check_fields(*value, path, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
      if (flag(*value, path, "add_prefix_space", true)) out.add(PreTokenizer::PrefixSpace{});
      if (flag(*value, path, "use_regex", true)) {
        out.add(PreTokenizer::Split{Pattern::regex(kGpt2Expression, file_, path), SplitBehavior::kIsolated,
                                    false});
      }
      byte_level_ = true;
    } else {
      unknown_type(*value, path, "Split, ByteLevel, Sequence");
    }
  }

  SplitBehavior behavior(const json& object, const std::string& path) const {
    const std::string name = text(object, path, "behavior");
    if (name == "Isolated") return SplitBehavior::kIsolated;
    if (name == "Removed") return SplitBehavior::kRemoved;
    if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
    if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
    if (name == "Contiguous") return SplitBehavior::kContiguous;
    refuse(join(path, "behavior"), object.at("behavior"),
           "one of Isolated, Removed, MergedWithPrevious, MergedWithNext, Contiguous");
  }

  // Known and not applied: BOS is in the text of the chat prompt.
  void post_processor(const json* value, const std::string& path) const {
    if (value == nullptr) return;
    const std::string type = type_of(*value, path);
    if (type == "Sequence") {
      check_fields(*value, path, {"type", "processors"});
      const json& steps = list(*value, path, "processors");
      for (std::size_t i = 0; i < steps.size(); ++i)
        post_processor(&steps[i], fmt::format("{}.processors.{}", path, i));
    } else if (type != "ByteLevel" && type != "TemplateProcessing") {
      unknown_type(*value, path, "ByteLevel, TemplateProcessing, Sequence");
    }
  }

  void decoder(const json& value, const std::string& path) {
    const std::string type = type_of(value, path);
    const auto before_fallback = [&] {
      if (fallback_seen_ || fused_) {
        throw InputError(
            "{}: {}: found {} after ByteFallback or Fuse, where this runtime does not support it", file_,
            path, type);
      }
    };
    DecoderChain& out = parts_->decoder;
    if (type == "Sequence") {
      check_fields(value, path, {"type", "decoders"});
      const json& steps = list(value, path, "decoders");
      for (std::size_t i = 0; i < steps.size(); ++i)
        decoder(steps[i], fmt::format("{}.decoders.{}", path, i));
    } else if (type == "ByteLevel") {
      check_fields(value, path, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
      before_fallback();
      out.add(DecoderChain::ByteLevel{});
      fused_ = true;  // its output is one text
    } else if (type == "Replace") {
      check_fields(value, path, {"type", "pattern", "content"});
      before_fallback();
      out.add(DecoderChain::Replace{pattern(value, path), bounded_text(value, path, "content")});
    } else if (type == "ByteFallback") {
      check_fields(value, path, {"type"});
      before_fallback();
      out.add(DecoderChain::ByteFallback{});
      fallback_seen_ = true;
    } else if (type == "Fuse") {
      check_fields(value, path, {"type"});
      fused_ = true;
    } else if (type == "Strip") {
      strip(value, path);
    } else {
      unknown_type(value, path, "ByteLevel, Replace, ByteFallback, Fuse, Strip, Sequence");
    }
  }

  void strip(const json& value, const std::string& path) {
    check_fields(value, path, {"type", "content", "start", "stop"});
    const std::string content = bounded_text(value, path, "content");
    const auto start = static_cast<std::size_t>(integer(value, path, "start", 1024));
    const auto stop = static_cast<std::size_t>(integer(value, path, "stop", 1024));
    if (content.empty() || utf8_size(content[0]) != content.size()) {
      refuse(join(path, "content"), content, "one character");
    }
    if (!fused_) {
      if (fallback_seen_)
        throw InputError(
            "{}: {}: found Strip between ByteFallback and Fuse, where this runtime does not support it",
            file_, path);
      parts_->decoder.add(DecoderChain::Strip{content, start, stop});
      return;
    }
    // On the whole text: a stream cannot take back an end that it has given out.
    if (stop != 0) refuse(join(path, "stop"), stop, "0 after Fuse");
    if (content.size() != 1) refuse(join(path, "content"), content, "an ASCII character after Fuse");
    if (parts_->decoder.strip_count() > 0)
      throw InputError("{}: {}: found a second Strip after Fuse, expected one", file_, path);
    parts_->decoder.set_text_strip(content[0], start);
  }

  // -- model --------------------------------------------------------------------------------------

  void model(const json& value) {
    const std::string path = "model";
    check_fields(value, path,
                 {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                  "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
    // Old files leave the type out; vocab and merges are required below.
    if (value.contains("type") && type_of(value, path) != "BPE") unknown_type(value, path, "BPE");
    for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
      const auto found = value.find(key);
      if (found == value.end() || found->is_null() || *found == "") continue;
      if (std::string_view(key) == "dropout" && found->is_number() && *found == 0) continue;
      refuse(join(path, key), *found, "null");
    }
    Vocabulary vocabulary = vocab(value);
    MergeTable table = merges(value, vocabulary);
    BpeOptions options;
    options.byte_level = byte_level_;
    options.byte_fallback = flag(value, path, "byte_fallback", false);
    options.fuse_unk = flag(value, path, "fuse_unk", false);
    options.ignore_merges = flag(value, path, "ignore_merges", false);
    if (const json* unk = component(value, "unk_token")) {
      const std::string token = text(value, path, "unk_token");
      options.unk_id = vocabulary.find(token);
      if (options.unk_id < 0) refuse("model.unk_token", *unk, "a token of model.vocab");
    }
    parts_->model = BpeModel(std::move(vocabulary), std::move(table), options);
  }

  Vocabulary vocab(const json& value) const {
    const json& entries = field(value, "model", "vocab");
    if (!entries.is_object() || entries.empty() || entries.size() > static_cast<std::size_t>(kMaxId)) {
      refuse("model.vocab", entries, fmt::format("an object of 1 to {} tokens", kMaxId));
    }
    Vocabulary vocabulary;
    vocabulary.reserve(entries.size(), 8 * entries.size());
    for (const auto& [token, id] : entries.get_ref<const json::object_t&>()) {
      if (!id.is_number_integer() || id < 0 || id >= kMaxId) {
        refuse(fmt::format("model.vocab[{}]", json_brief(token)), id,
               fmt::format("an id from 0 to {}", kMaxId - 1));
      }
      if (vocabulary.add(token, id.get<std::int32_t>()) == Vocabulary::Added::kIdTaken) {
        throw InputError(
            "{}: model.vocab[{}]: found the id {}, which the token {} has too; expected one token an id",
            file_, json_brief(token), id.get<std::int32_t>(),
            json_brief(std::string(*vocabulary.text(id.get<std::int32_t>()))));
      }
    }
    return vocabulary;
  }

  MergeTable merges(const json& value, const Vocabulary& vocabulary) const {
    const json& entries = list(value, "model", "merges");
    if (entries.size() > kMaxMerges)
      refuse("model.merges", entries, fmt::format("at most {} merges", kMaxMerges));
    MergeTable table;
    table.reserve(entries.size());
    std::string joined;
    std::uint32_t rank = 0;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const json& entry = entries[i];
      if (entry.is_string() && entry.get_ref<const std::string&>().rfind("#version", 0) == 0) continue;
      const auto [left, right] = merge_sides(entry, i);
      joined.assign(left).append(right);
      const std::int32_t left_id = merge_token(vocabulary, left, i, "left side");
      const std::int32_t right_id = merge_token(vocabulary, right, i, "right side");
      table.set(left_id, right_id, {rank++, merge_token(vocabulary, joined, i, "result")});
    }
    return table;
  }

  std::pair<std::string_view, std::string_view> merge_sides(const json& entry, std::size_t index) const {
    if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
      return {entry[0].get_ref<const std::string&>(), entry[1].get_ref<const std::string&>()};
    }
    if (entry.is_string()) {
      const std::string_view line = entry.get_ref<const std::string&>();
      const auto space = line.find(' ');
      if (space != std::string_view::npos && line.find(' ', space + 1) == std::string_view::npos) {
        return {line.substr(0, space), line.substr(space + 1)};
      }
    }
    refuse(fmt::format("model.merges.{}", index), entry, "\"left right\" or [\"left\", \"right\"]");
  }

  std::int32_t merge_token(const Vocabulary& vocabulary, std::string_view token, std::size_t index,
                           std::string_view part) const {
    const std::int32_t id = vocabulary.find(token);
    if (id < 0) {
      throw InputError("{}: model.merges.{}: the {} {} is not in model.vocab", file_, index, part,
                       json_brief(std::string(token)));
    }
    return id;
  }

  // -- added tokens -------------------------------------------------------------------------------

  void added_tokens() {
    const json* entries = component(root_, "added_tokens");
    if (entries == nullptr) return;
    if (!entries->is_array() || entries->size() > kMaxAdded) {
      refuse("added_tokens", *entries, fmt::format("an array of at most {} tokens", kMaxAdded));
    }
    for (std::size_t i = 0; i < entries->size(); ++i)
      added_token((*entries)[i], fmt::format("added_tokens.{}", i));
  }

  void added_token(const json& entry, const std::string& path) {
    if (!entry.is_object()) refuse(path, entry, "an object");
    check_fields(entry, path, {"id", "content", "special", "normalized", "single_word", "lstrip", "rstrip"});
    AddedToken token;
    token.content = text(entry, path, "content");
    if (token.content.empty() || token.content.size() > kMaxAddedBytes) {
      refuse(join(path, "content"), token.content, fmt::format("1 to {} bytes", kMaxAddedBytes));
    }
    token.id = static_cast<std::int32_t>(integer(entry, path, "id", kMaxId - 1));
    token.special = flag(entry, path, "special", false);
    token.normalized = flag(entry, path, "normalized", !token.special);
    token.single_word = flag(entry, path, "single_word", false);
    token.lstrip = flag(entry, path, "lstrip", false);
    token.rstrip = flag(entry, path, "rstrip", false);
    check_added_id(token, path);
    if (!token.normalized) {
      parts_->raw_added.add(token, token.content);
      added_.push_back({token.id, token.special, token.content});
      return;
    }
    const std::string normalized = parts_->normalizer.apply(token.content);
    if (normalized.empty())
      refuse(join(path, "content"), token.content, "a text that the normalizer does not erase");
    parts_->normalized_added.add(token, normalized);
    added_.push_back({token.id, token.special, normalized});
  }

  void check_added_id(const AddedToken& token, const std::string& path) {
    const std::string here = join(path, "id");
    const Vocabulary& vocabulary = parts_->model.vocabulary();
    const std::int32_t known = vocabulary.find(token.content);
    if (known >= 0 && known != token.id)
      refuse(here, token.id, fmt::format("{}, the id of this token in model.vocab", known));
    if (known < 0 && vocabulary.text(token.id)) {
      refuse(here, token.id,
             fmt::format("an id of its own; model.vocab gives it to {}",
                         json_brief(std::string(*vocabulary.text(token.id)))));
    }
    switch (parts_->added.add(token.content, token.id)) {
      case Vocabulary::Added::kDone:
        return;
      case Vocabulary::Added::kTextTaken:
        refuse(join(path, "content"), token.content, "each added token once");
      case Vocabulary::Added::kIdTaken:
        refuse(here, token.id, "an id that no other added token has");
    }
  }

  void token_tables() {
    TokenizerParts& parts = *parts_;
    const Vocabulary& vocabulary = parts.model.vocabulary();
    const auto size = static_cast<std::size_t>(std::max(vocabulary.size(), parts.added.size()));
    parts.special.assign(size, false);
    std::vector<const std::string*> added(size, nullptr);
    for (const Added& token : added_) {
      parts.special[static_cast<std::size_t>(token.id)] = token.special;
      added[static_cast<std::size_t>(token.id)] = &token.decoded;
    }
    parts.ends.reserve(size);
    for (std::size_t id = 0; id < size; ++id) {
      const auto known = vocabulary.text(static_cast<std::int32_t>(id));
      if (added[id] != nullptr) {
        parts.bytes += parts.decoder.token_bytes(*added[id]);
      } else if (known) {
        parts.bytes += parts.decoder.token_bytes(*known);
      }
      if (parts.bytes.size() > kMaxDecodedBytes) {
        throw InputError("{}: decoder: the tokens decode to more than {} bytes", file_, kMaxDecodedBytes);
      }
      parts.ends.push_back(static_cast<std::uint32_t>(parts.bytes.size()));
    }
  }

  const json& root_;
  const std::string& file_;
  std::shared_ptr<TokenizerParts> parts_ = std::make_shared<TokenizerParts>();
  struct Added {
    std::int32_t id;
    bool special;
    std::string decoded;  // what the decoder is given: the text that was matched
  };
  std::vector<Added> added_;
  bool byte_level_ = false;
  bool fallback_seen_ = false;
  bool fused_ = false;
};

}  // namespace

std::shared_ptr<const TokenizerParts> load_tokenizer_parts(std::string_view json_text,
                                                           const std::string& file) {
  const json root = parse_json(json_text, file);
  if (!root.is_object()) throw InputError("{}: found {}, expected an object", file, json_brief(root));
  std::shared_ptr<TokenizerParts> parts = Loader(root, file).run();
  parts->fingerprint = XXH3_64bits(json_text.data(), json_text.size());
  return parts;
}

}  // namespace tessera
