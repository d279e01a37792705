#include "runtime/model/gather_logits.hpp"

#include <algorithm>

#include "runtime/core/error.hpp"
#include "runtime/model/tensor_plan.hpp"

namespace tessera {

std::vector<float> gather_vocabulary(Communicator& tp, std::span<const float> part, std::int64_t rows,
                                     std::int64_t vocab) {
  const int ranks = tp.size();
  const auto width_of = [&](int rank) {
    return vocab_begin(vocab, rank + 1, ranks) - vocab_begin(vocab, rank, ranks);
  };
  TESSERA_CHECK(static_cast<std::int64_t>(part.size()) == rows * width_of(tp.rank()));
  std::vector<std::size_t> counts;
  for (int rank = 0; rank < ranks; ++rank) {
    counts.push_back(static_cast<std::size_t>(rows * width_of(rank)) * sizeof(float));
  }
  std::vector<float> gathered(static_cast<std::size_t>(rows * vocab));
  tp.all_gather_v(part.data(), gathered.data(), counts);
  if (rows == 1) return gathered;
  std::vector<float> logits(gathered.size());
  const float* source = gathered.data();
  for (int rank = 0; rank < ranks; ++rank) {
    const std::int64_t begin = vocab_begin(vocab, rank, ranks), width = width_of(rank);
    for (std::int64_t row = 0; row < rows; ++row, source += width) {
      std::copy_n(source, width, logits.data() + row * vocab + begin);
    }
  }
  return logits;
}

}  // namespace tessera
