#include "parallel/gather_texts.hpp"

#include <numeric>

namespace tessera {

std::vector<std::string> all_gather_texts(Communicator& world, const std::string& mine) {
  const std::uint64_t bytes = mine.size();
  std::vector<std::uint64_t> sizes(static_cast<std::size_t>(world.size()));
  world.all_gather(&bytes, sizeof bytes, sizes.data());
  const std::vector<std::size_t> counts(sizes.begin(), sizes.end());
  std::string all(std::accumulate(counts.begin(), counts.end(), std::size_t{0}), '\0');
  world.all_gather_v(mine.data(), all.data(), counts);

  std::vector<std::string> texts;
  std::size_t begin = 0;
  for (const std::size_t count : counts) {
    texts.push_back(all.substr(begin, count));
    begin += count;
  }
  return texts;
}

}  // namespace tessera
