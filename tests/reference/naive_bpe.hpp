// Byte-pair encoding as its definition says, in quadratic time and over strings; shares nothing with io/.
#pragma once

#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace tessera::reference {

// Symbols of a piece after all merges: while some neighbours are in the list of merges, the pair that comes
// first in the list is joined, at its leftmost place.
inline std::vector<std::string> naive_bpe(std::vector<std::string> symbols,
                                          const std::vector<std::pair<std::string, std::string>>& merges) {
  std::map<std::pair<std::string, std::string>, std::size_t> rank;
  for (std::size_t i = 0; i < merges.size(); ++i) rank[merges[i]] = i;
  while (true) {
    std::size_t best_rank = std::numeric_limits<std::size_t>::max();
    std::size_t best = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = rank.find({symbols[i], symbols[i + 1]});
      if (found != rank.end() && found->second < best_rank) {
        best_rank = found->second;
        best = i;
      }
    }
    if (best_rank == std::numeric_limits<std::size_t>::max()) return symbols;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

}  // namespace tessera::reference
