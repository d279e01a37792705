// block_sparse: the best key blocks of each query block by the product of their means. First, diagonal and
// sub-diagonal block are forced.
#include <algorithm>
#include <limits>

#include "attention/block_scores.hpp"
#include "attention/select_families.hpp"
#include "attention/selection_builder.hpp"
#include "attention/top_units.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera {
namespace {

// scores: of key blocks 0 … row, in ordered bits; overwritten where forced. A budget below the forced blocks
// keeps them all the same, as budgets by arithmetic suppose.
std::vector<std::int32_t> choose_row(std::span<std::int32_t> scores, std::int64_t budget) {
  constexpr std::int32_t kForced = std::numeric_limits<std::int32_t>::max();
  const std::size_t row = scores.size() - 1;
  scores[0] = kForced;
  scores[row] = kForced;
  if (row > 0) scores[row - 1] = kForced;
  constexpr std::int64_t kForcedBlocks = 3;
  return top_units<std::int32_t>(scores, std::max(budget, kForcedBlocks));
}

}  // namespace

PrefillChoice select_pooled_blocks(const SelectInput& input, const MethodSettings& settings) {
  const HeadGroups groups(input);
  const std::int64_t edge = settings.whole("edge");
  const std::int64_t budget = settings.whole("blocks");
  const std::int64_t blocks = ceil_div(input.tokens, edge);
  const std::size_t head_floats = static_cast<std::size_t>(blocks * input.head_dim);
  std::vector<float> q_means(static_cast<std::size_t>(input.heads) * head_floats);
  std::vector<float> k_means(static_cast<std::size_t>(input.kv_heads) * head_floats);
  pool_blocks(input.q, input.tokens, input.heads, input.head_dim, edge, q_means.data());
  pool_blocks(input.k, input.tokens, input.kv_heads, input.head_dim, edge, k_means.data());
  std::vector<PooledKeys> keys;
  for (int head = 0; head < input.kv_heads; ++head) {
    keys.emplace_back(k_means.data() + static_cast<std::size_t>(head) * head_floats, blocks, input.head_dim);
  }

  PrefillChoice choice;
  auto& chosen = choice.native.blocks;
  chosen.assign(static_cast<std::size_t>(groups.lists),
                std::vector<std::vector<std::int32_t>>(static_cast<std::size_t>(blocks)));
  constexpr std::int64_t kRows = 32;  // query blocks a task
  const std::int64_t tiles = ceil_div(blocks, kRows);
#pragma omp parallel
  {
    std::vector<float> scores(keys.empty() ? 0 : static_cast<std::size_t>(kRows * keys.front().row_stride()));
    std::vector<std::int32_t> ordered;
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t index = 0; index < groups.lists * tiles; ++index) {
      const int list = static_cast<int>(index / tiles);
      const std::int64_t first = (tiles - 1 - index % tiles) * kRows;  // long rows first
      const std::int64_t rows = std::min(kRows, blocks - first);
      const PooledKeys& k =
          keys[static_cast<std::size_t>(list * groups.size / (input.heads / input.kv_heads))];
      for (int g = 0; g < groups.size; ++g) {
        // Of a group: the sum of its heads' scores, which is one running sum in fp32, head after head.
        const float* q = q_means.data() + static_cast<std::size_t>(list * groups.size + g) * head_floats +
                         first * input.head_dim;
        k.score(q, rows, first + rows, g > 0, scores.data());
      }
      for (std::int64_t r = 0; r < rows; ++r) {
        const float* row = scores.data() + r * k.row_stride();
        ordered.resize(static_cast<std::size_t>(first + r + 1));
        std::transform(row, row + ordered.size(), ordered.begin(), ordered_bits);
        chosen[static_cast<std::size_t>(list)][static_cast<std::size_t>(first + r)] =
            choose_row(ordered, budget);
      }
    }
  }
  choice.selection = select_blocks(input.tokens, input.share_group, edge, chosen);
  return choice;
}

}  // namespace tessera
