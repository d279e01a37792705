#include "io/tokenizer_bpe.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <functional>

#include "io/utf8.hpp"
#include "runtime/core/error.hpp"

namespace tessera {

namespace {

// Pieces of more symbols than this are merged with a queue: the scan for the best pair is quadratic.
constexpr std::size_t kShortPiece = 48;

struct ByteLevelTable {
  std::array<char32_t, 256> character{};
  std::array<std::int16_t, 0x144> byte{};  // by character; -1: none

  constexpr ByteLevelTable() {
    byte.fill(-1);
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool itself = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const char32_t c = itself ? static_cast<char32_t>(b) : next++;
      character[static_cast<std::size_t>(b)] = c;
      byte[c] = static_cast<std::int16_t>(b);
    }
  }
};
constexpr ByteLevelTable kByteLevel;

std::uint64_t mix(std::uint64_t key) {
  key *= 0x9E3779B97F4A7C15u;
  key ^= key >> 32;
  key *= 0xD6E8FEB86659FD93u;
  return key ^ key >> 29;
}

}  // namespace

void append_byte_level(std::string& out, std::string_view bytes) {
  for (const char b : bytes) append_utf8(out, kByteLevel.character[static_cast<unsigned char>(b)]);
}

std::optional<std::string> from_byte_level(std::string_view text) {
  std::string bytes;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = code_point_at(text, at);
    if (c.value >= kByteLevel.byte.size() || kByteLevel.byte[c.value] < 0) return std::nullopt;
    bytes += static_cast<char>(kByteLevel.byte[c.value]);
    at += c.size;
  }
  return bytes;
}

// ---- Vocabulary ---------------------------------------------------------------------------------

void Vocabulary::reserve(std::size_t tokens, std::size_t bytes) {
  places_.reserve(tokens);
  bytes_.reserve(bytes);
  rehash(std::bit_ceil(std::max<std::size_t>(16, 2 * tokens)));
}

std::size_t Vocabulary::slot_of(std::string_view text) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = XXH3_64bits(text.data(), text.size()) & mask;
  while (slots_[slot] >= 0) {
    const Place& place = places_[static_cast<std::size_t>(slots_[slot])];
    if (std::string_view(bytes_).substr(place.offset, place.size) == text) break;
    slot = (slot + 1) & mask;
  }
  return slot;
}

void Vocabulary::rehash(std::size_t slots) {
  if (slots <= slots_.size()) return;
  slots_.assign(slots, -1);
  for (std::size_t id = 0; id < places_.size(); ++id) {
    if (const auto known = text(static_cast<std::int32_t>(id)))
      slots_[slot_of(*known)] = static_cast<std::int32_t>(id);
  }
}

Vocabulary::Added Vocabulary::add(std::string_view text, std::int32_t id) {
  if (2 * (count_ + 1) > slots_.size()) rehash(std::max<std::size_t>(16, 2 * slots_.size()));
  const std::size_t slot = slot_of(text);
  if (slots_[slot] >= 0) return Added::kTextTaken;
  const auto index = static_cast<std::size_t>(id);
  if (index >= places_.size()) places_.resize(index + 1);
  if (places_[index].offset != kHole) return Added::kIdTaken;
  places_[index] = {static_cast<std::uint32_t>(bytes_.size()), static_cast<std::uint32_t>(text.size())};
  bytes_ += text;
  slots_[slot] = id;
  ++count_;
  return Added::kDone;
}

std::int32_t Vocabulary::find(std::string_view text) const {
  return slots_.empty() ? -1 : slots_[slot_of(text)];
}

std::optional<std::string_view> Vocabulary::text(std::int32_t id) const {
  const auto index = static_cast<std::size_t>(id);
  if (id < 0 || index >= places_.size() || places_[index].offset == kHole) return std::nullopt;
  return std::string_view(bytes_).substr(places_[index].offset, places_[index].size);
}

// ---- MergeTable ---------------------------------------------------------------------------------

void MergeTable::reserve(std::size_t merges) {
  TESSERA_CHECK(count_ == 0);
  slots_.assign(std::bit_ceil(std::max<std::size_t>(16, merges + merges / 2)), Slot{});
}

std::size_t MergeTable::slot_of(std::uint64_t key) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = mix(key) & mask;
  while (slots_[slot].key != key && slots_[slot].key != kFree) slot = (slot + 1) & mask;
  return slot;
}

void MergeTable::set(std::int32_t left, std::int32_t right, Merge merge) {
  TESSERA_CHECK(count_ + 1 < slots_.size());
  Slot& slot = slots_[slot_of(key_of(left, right))];
  if (slot.key == kFree) ++count_;
  slot = {key_of(left, right), merge};
}

MergeTable::Merge MergeTable::find(std::int32_t left, std::int32_t right) const {
  if (slots_.empty()) return {};
  return slots_[slot_of(key_of(left, right))].merge;
}

// ---- BpeModel -----------------------------------------------------------------------------------

BpeModel::BpeModel(Vocabulary vocabulary, MergeTable merges, const BpeOptions& options)
    : vocabulary_(std::move(vocabulary)), merges_(std::move(merges)), options_(options) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::string text;
    if (options_.byte_level) {
      append_byte_level(text, std::string(1, static_cast<char>(byte)));
    } else {
      text = fmt::format("<0x{:02X}>", byte);
    }
    byte_ids_[byte] = vocabulary_.find(text);
    if (byte < 128) ascii_ids_[byte] = vocabulary_.find(std::string(1, static_cast<char>(byte)));
  }
}

void BpeModel::encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const {
  if (options_.ignore_merges) {
    scratch.spelling.clear();
    if (options_.byte_level) append_byte_level(scratch.spelling, piece);
    const std::int32_t whole =
        vocabulary_.find(options_.byte_level ? std::string_view(scratch.spelling) : piece);
    if (whole >= 0) {
      out.push_back(whole);
      return;
    }
  }
  scratch.ids.clear();
  split_symbols(piece, scratch.ids);
  if (scratch.ids.size() > 1) {
    scratch.ids.size() <= kShortPiece ? merge_short(scratch) : merge_long(scratch);
  }
  out.insert(out.end(), scratch.ids.begin(), scratch.ids.end());
}

// One id a byte (byte level) or a character, with fallback and unknown token as the file asks. An unknown run
// stays pending over fallback bytes, as in the reference implementation.
void BpeModel::split_symbols(std::string_view piece, std::vector<std::int32_t>& ids) const {
  bool unknown_pending = false;
  const auto unknown = [&](std::string_view symbol) {
    if (options_.unk_id < 0) {
      std::string hex;
      for (const char byte : symbol) hex += fmt::format(" {:02X}", static_cast<unsigned char>(byte));
      throw InputError(
          "tokenizer: the text has the bytes{}, for which the vocabulary has neither a token nor an unknown "
          "token",
          hex);
    }
    if (unknown_pending && !options_.fuse_unk) ids.push_back(options_.unk_id);
    unknown_pending = true;
  };
  for (std::size_t at = 0; at < piece.size();) {
    const std::size_t size = options_.byte_level ? 1 : utf8_size(piece[at]);
    const std::string_view symbol = piece.substr(at, size);
    const auto lead = static_cast<unsigned char>(piece[at]);
    at += size;
    const std::int32_t id = options_.byte_level ? byte_ids_[lead]
                            : lead < 128        ? ascii_ids_[lead]
                                                : vocabulary_.find(symbol);
    if (id >= 0) {
      if (unknown_pending) ids.push_back(options_.unk_id);
      unknown_pending = false;
      ids.push_back(id);
      continue;
    }
    const auto byte_id = [&](char byte) { return byte_ids_[static_cast<unsigned char>(byte)]; };
    const bool falls_back =
        options_.byte_fallback && !options_.byte_level &&
        std::all_of(symbol.begin(), symbol.end(), [&](char byte) { return byte_id(byte) >= 0; });
    if (falls_back) {
      for (const char byte : symbol) ids.push_back(byte_id(byte));
    } else {
      unknown(symbol);
    }
  }
  if (unknown_pending) ids.push_back(options_.unk_id);
}

// Merges the pair of lowest rank, leftmost first, until none is left; finds it by scanning.
void BpeModel::merge_short(Scratch& scratch) const {
  std::array<std::int32_t, kShortPiece> ids;
  std::array<MergeTable::Merge, kShortPiece> pairs;  // pairs[i]: merge of ids[i] and ids[i + 1]
  std::size_t count = scratch.ids.size();
  std::copy(scratch.ids.begin(), scratch.ids.end(), ids.begin());
  for (std::size_t i = 0; i + 1 < count; ++i) pairs[i] = merges_.find(ids[i], ids[i + 1]);
  while (count > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < count; ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (pairs[best].rank == MergeTable::kNone) break;
    ids[best] = pairs[best].id;
    std::copy(ids.begin() + best + 2, ids.begin() + count, ids.begin() + best + 1);
    std::copy(pairs.begin() + std::min(best + 2, count - 1), pairs.begin() + (count - 1),
              pairs.begin() + best + 1);
    --count;
    if (best + 1 < count) pairs[best] = merges_.find(ids[best], ids[best + 1]);
    if (best > 0) pairs[best - 1] = merges_.find(ids[best - 1], ids[best]);
  }
  scratch.ids.assign(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count));
}

// The same in n log n: symbols in a linked list, candidate pairs in a queue ordered by (rank, place). An
// entry is stale when the pair at its place has another rank by now.
void BpeModel::merge_long(Scratch& scratch) const {
  constexpr std::uint32_t kEnd = UINT32_MAX;
  auto& [spelling, ids, pairs, previous, next, queue] = scratch;
  if (ids.size() >= kEnd)
    throw InputError("tokenizer: a piece of {} symbols, expected fewer than {}", ids.size(), kEnd);
  const auto count = static_cast<std::uint32_t>(ids.size());
  const auto entry = [](std::uint32_t rank, std::uint32_t place) {
    return std::uint64_t{rank} << 32 | place;
  };
  pairs.assign(count, {});
  previous.resize(count);
  next.resize(count);
  queue.clear();
  for (std::uint32_t i = 0; i < count; ++i) {
    previous[i] = i == 0 ? kEnd : i - 1;
    next[i] = i + 1 == count ? kEnd : i + 1;
    if (next[i] == kEnd) continue;
    pairs[i] = merges_.find(ids[i], ids[i + 1]);
    if (pairs[i].rank != MergeTable::kNone) queue.push_back(entry(pairs[i].rank, i));
  }
  std::make_heap(queue.begin(), queue.end(), std::greater<>());
  const auto refresh = [&](std::uint32_t place) {  // the pair at `place` has changed
    pairs[place] = next[place] == kEnd ? MergeTable::Merge{} : merges_.find(ids[place], ids[next[place]]);
    if (pairs[place].rank == MergeTable::kNone) return;
    queue.push_back(entry(pairs[place].rank, place));
    std::push_heap(queue.begin(), queue.end(), std::greater<>());
  };
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const auto rank = static_cast<std::uint32_t>(queue.back() >> 32);
    const auto place = static_cast<std::uint32_t>(queue.back());
    queue.pop_back();
    if (pairs[place].rank != rank) continue;
    const std::uint32_t gone = next[place];
    ids[place] = pairs[place].id;
    next[place] = next[gone];
    if (next[place] != kEnd) previous[next[place]] = place;
    ids[gone] = -1;
    pairs[gone] = {};
    refresh(place);
    if (previous[place] != kEnd) refresh(previous[place]);
  }
  std::erase(ids, -1);
}

}  // namespace tessera
