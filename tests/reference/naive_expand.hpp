// From native decisions to visible keys: which pages of 16 keys a block of query rows sees, written out page
// by page.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace reference {

// One flag a page of the sequence.
using PageFlags = std::vector<char>;

inline std::size_t page_count(std::size_t tokens) {
  return (tokens + 15) / 16;
}

// Keys first … last (which may lie outside the sequence), rounded out to pages.
inline void mark_keys(PageFlags& pages, std::size_t tokens, std::int64_t first, std::int64_t last) {
  for (std::int64_t key = std::max<std::int64_t>(first, 0);
       key <= last && key < static_cast<std::int64_t>(tokens); ++key) {
    pages[static_cast<std::size_t>(key) / 16] = 1;
  }
}

// A kept offset o gives the query block that starts at q0 the keys q0 − o … q0 + 63 − o.
inline PageFlags pages_of_diagonals(std::size_t tokens, std::size_t query_block,
                                    const std::vector<std::int32_t>& offsets) {
  PageFlags pages(page_count(tokens), 0);
  const auto q0 = static_cast<std::int64_t>(query_block) * 64;
  for (std::int32_t o : offsets) mark_keys(pages, tokens, q0 - o, q0 + 63 - o);
  return pages;
}

// KV blocks of `edge` keys.
inline PageFlags pages_of_blocks(std::size_t tokens, std::size_t edge,
                                 const std::vector<std::int32_t>& blocks) {
  PageFlags pages(page_count(tokens), 0);
  for (std::int32_t b : blocks) {
    const auto first = static_cast<std::int64_t>(b) * static_cast<std::int64_t>(edge);
    mark_keys(pages, tokens, first, first + static_cast<std::int64_t>(edge) - 1);
  }
  return pages;
}

// Pages that no row of the query block may look into, since they begin after its last row, are nothing to
// anybody.
inline void drop_future(PageFlags& pages, std::size_t tokens, std::size_t query_block, std::size_t rows) {
  const std::size_t last_row = std::min(tokens, (query_block + 1) * rows) - 1;
  for (std::size_t page = last_row / 16 + 1; page < pages.size(); ++page) pages[page] = 0;
}

// Causal (query, key) pairs of one query block that pages or columns let through, each once.
inline std::uint64_t visible_pairs(std::size_t tokens, std::size_t query_block, std::size_t rows,
                                   const PageFlags& pages, const std::vector<char>& is_column) {
  std::uint64_t pairs = 0;
  for (std::size_t i = query_block * rows; i < std::min(tokens, (query_block + 1) * rows); ++i) {
    for (std::size_t j = 0; j <= i; ++j) pairs += pages[j / 16] || is_column[j];
  }
  return pairs;
}

}  // namespace reference
