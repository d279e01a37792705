// The keys that a PrefillSelection gives to one query block of one list, in tiles of at most 64: first the
// keys of its pages, several blocks to a tile where masks are sparse, then its columns that no seen page
// covers. A page that is not seen costs nothing.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "attention/selection.hpp"
#include "kvcache/kv_view.hpp"

namespace tessera {

struct KeyTile {
  std::size_t count = 0;                              // keys in use
  std::array<std::int32_t, kBlockTokens> positions;   // of each key; ascending over pages, then over columns
  std::array<const std::byte*, kBlockTokens> keys;    // (D) of each key, in the cache
  std::array<const std::byte*, kBlockTokens> values;  // likewise
};

class SelectedKeys {
 public:
  // entries, columns: what the row sees, ascending. Keys at positions ≥ end are left out, and blocks that the
  // view does not hold.
  SelectedKeys(const KvView& kv, int kv_head, std::span<const BlockEntry> entries,
               std::span<const std::int32_t> columns, std::int64_t end)
      : kv_(kv),
        kv_head_(kv_head),
        entries_(entries),
        columns_(columns),
        end_(std::min(end, kv.length)),
        row_bytes_(static_cast<std::size_t>(kv.head_dim) * size_of(kv.dtype)) {}

  // The next keys; a tile without any ends the list.
  void next(KeyTile& tile) {
    tile.count = 0;
    take_pages(tile);
    take_columns(tile);
  }

 private:
  void take_pages(KeyTile& tile) {
    while (entry_ < entries_.size()) {
      const BlockEntry entry = entries_[entry_];
      const std::int64_t block = entry.block();
      const bool any = block * kBlockTokens < end_ && kv_.holds(kv_head_, block);
      for (; any && page_ < kBlockTokens / kPageTokens; ++page_) {
        if ((entry.pages() >> page_ & 1u) == 0) continue;
        if (tile.count + kPageTokens > kBlockTokens) return;
        const std::int64_t first = block * kBlockTokens + page_ * kPageTokens;
        take(tile, first, std::min<std::int64_t>(kPageTokens, end_ - first));
      }
      page_ = 0;
      ++entry_;
    }
  }

  void take_columns(KeyTile& tile) {
    for (; column_ < columns_.size() && tile.count < kBlockTokens; ++column_) {
      const std::int64_t position = columns_[column_];
      if (position >= end_) return;
      const std::int64_t block = position / kBlockTokens;
      while (cover_ < entries_.size() && entries_[cover_].block() < block) ++cover_;
      const bool covered = cover_ < entries_.size() && entries_[cover_].block() == block &&
                           (entries_[cover_].pages() >> position % kBlockTokens / kPageTokens & 1u) != 0;
      if (!covered && kv_.holds(kv_head_, block)) take(tile, position, 1);
    }
  }

  // Keys first … first + count − 1, all of one block.
  void take(KeyTile& tile, std::int64_t first, std::int64_t count) {
    const std::int64_t block = first / kBlockTokens;
    const std::size_t offset = static_cast<std::size_t>(first % kBlockTokens) * row_bytes_;
    const std::byte* key = kv_.keys(kv_head_, block) + offset;
    const std::byte* value = kv_.values(kv_head_, block) + offset;
    for (std::int64_t i = 0; i < count; ++i) {
      tile.positions[tile.count] = static_cast<std::int32_t>(first + i);
      tile.keys[tile.count] = key + static_cast<std::size_t>(i) * row_bytes_;
      tile.values[tile.count] = value + static_cast<std::size_t>(i) * row_bytes_;
      ++tile.count;
    }
  }

  const KvView& kv_;
  int kv_head_;
  std::span<const BlockEntry> entries_;
  std::span<const std::int32_t> columns_;
  std::int64_t end_;
  std::size_t row_bytes_;
  std::size_t entry_ = 0;   // the next page: of this entry …
  int page_ = 0;            // … and this one or later
  std::size_t column_ = 0;  // the next column
  std::size_t cover_ = 0;   // the first entry that may cover it
};

}  // namespace tessera
