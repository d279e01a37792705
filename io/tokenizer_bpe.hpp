// Byte-pair encoding: the vocabulary, the merges, and the encoding of one piece of text.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera {

// Texts of tokens by id and back. Ids may have holes; texts and ids are unique.
class Vocabulary {
 public:
  enum class Added { kDone, kTextTaken, kIdTaken };

  void reserve(std::size_t tokens, std::size_t bytes);
  Added add(std::string_view text, std::int32_t id);  // id >= 0
  std::int32_t find(std::string_view text) const;     // -1 where absent
  std::optional<std::string_view> text(std::int32_t id) const;
  std::int32_t size() const { return static_cast<std::int32_t>(places_.size()); }  // largest id + 1

 private:
  struct Place {
    std::uint32_t offset = kHole;
    std::uint32_t size = 0;
  };
  static constexpr std::uint32_t kHole = UINT32_MAX;
  std::size_t slot_of(std::string_view text) const;
  void rehash(std::size_t slots);

  std::string bytes_;
  std::vector<Place> places_;        // by id
  std::vector<std::int32_t> slots_;  // open addressing, power of two: id or -1
  std::size_t count_ = 0;
};

// Merges by pair of ids. The rank is the line of the merge: lower is applied first.
class MergeTable {
 public:
  struct Merge {
    std::uint32_t rank = kNone;
    std::int32_t id = -1;  // what the pair becomes
  };
  static constexpr std::uint32_t kNone = UINT32_MAX;

  void reserve(std::size_t merges);
  void set(std::int32_t left, std::int32_t right, Merge merge);  // a pair given twice keeps the later merge
  Merge find(std::int32_t left, std::int32_t right) const;

 private:
  struct Slot {
    std::uint64_t key = kFree;
    Merge merge;
  };
  static constexpr std::uint64_t kFree = UINT64_MAX;
  static std::uint64_t key_of(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
           static_cast<std::uint32_t>(right);
  }
  std::size_t slot_of(std::uint64_t key) const;

  std::vector<Slot> slots_;  // power of two
  std::size_t count_ = 0;
};

struct BpeOptions {
  bool byte_level = false;     // symbols are bytes, spelled in the vocabulary by GPT-2's 256 characters
  bool byte_fallback = false;  // a character without a token becomes <0xHH> tokens
  bool fuse_unk = false;       // neighbouring unknown characters become one unknown token
  bool ignore_merges = false;  // a piece that is in the vocabulary is taken whole
  std::int32_t unk_id = -1;
};

class BpeModel {
 public:
  BpeModel() = default;
  BpeModel(Vocabulary vocabulary, MergeTable merges, const BpeOptions& options);

  // Memory that encoding needs, kept between the pieces of one call.
  struct Scratch {
    std::string spelling;
    std::vector<std::int32_t> ids;
    std::vector<MergeTable::Merge> merges;
    std::vector<std::uint32_t> previous, next;
    std::vector<std::uint64_t> queue;
  };

  // Appends the ids of one piece (valid UTF-8, not empty). InputError where a character has no token and
  // there is neither fallback nor unknown token: text is never dropped silently.
  void encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  const BpeOptions& options() const { return options_; }

 private:
  void split_symbols(std::string_view piece, std::vector<std::int32_t>& ids) const;
  void merge_short(Scratch& scratch) const;
  void merge_long(Scratch& scratch) const;

  Vocabulary vocabulary_;
  MergeTable merges_;
  BpeOptions options_;
  std::array<std::int32_t, 256> byte_ids_{};  // of each byte: its character (byte_level) or its <0xHH> token
  std::array<std::int32_t, 128> ascii_ids_{};
};

// GPT-2's spelling of bytes as characters: printable Latin-1 stands for itself, the other 68 bytes for
// U+0100 and up.
void append_byte_level(std::string& out, std::string_view bytes);

// The bytes that a byte-level text spells, or nothing if it has characters outside the 256.
std::optional<std::string> from_byte_level(std::string_view text);

}  // namespace tessera
