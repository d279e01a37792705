// xattention: each query block keeps the fewest key blocks whose antidiagonal scores
// (attention/block_scores.hpp) reach the threshold. First and diagonal block are forced and count with their
// own scores; then blocks join by score, ties to the lower index, while what is kept is less than threshold ·
// the scores of the row. Threshold 1 keeps everything, whatever rounding says.
#include <algorithm>
#include <numeric>

#include "attention/block_scores.hpp"
#include "attention/select_families.hpp"
#include "attention/selection_builder.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera {
namespace {

// scores: of key blocks 0 … row.
std::vector<std::int32_t> cover_row(std::span<const Fixed> scores, double threshold) {
  const std::int32_t row = static_cast<std::int32_t>(scores.size()) - 1;
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  if (threshold >= 1) return order;
  const double needed =
      threshold * static_cast<double>(std::accumulate(scores.begin(), scores.end(), Fixed{0}));
  const auto forced = [&](std::int32_t block) { return block == 0 || block == row; };
  std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    if (forced(a) != forced(b)) return forced(a);
    const Fixed x = scores[static_cast<std::size_t>(a)];
    const Fixed y = scores[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  });
  Fixed kept = 0;
  std::size_t count = 0;
  while (count < order.size() && (forced(order[count]) || static_cast<double>(kept) < needed)) {
    kept += scores[static_cast<std::size_t>(order[count++])];
  }
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace

PrefillChoice select_antidiagonal_blocks(const SelectInput& input, const MethodSettings& settings) {
  const HeadGroups groups(input);
  const double threshold = settings.real("threshold");
  AntidiagonalProblem problem;
  problem.tokens = input.tokens;
  problem.heads = input.heads;
  problem.kv_heads = input.kv_heads;
  problem.head_dim = input.head_dim;
  problem.q = input.q;
  problem.k = input.k;
  problem.scale = input.scale;
  problem.edge = settings.whole("edge");
  problem.stride = settings.whole("stride");
  const std::int64_t blocks = problem.blocks();
  const std::int64_t tile_blocks = problem.blocks_a_tile();
  const std::int64_t tiles = ceil_div(blocks, tile_blocks);

  PrefillChoice choice;
  auto& chosen = choice.native.blocks;
  chosen.assign(static_cast<std::size_t>(groups.lists),
                std::vector<std::vector<std::int32_t>>(static_cast<std::size_t>(blocks)));
#pragma omp parallel
  {
    std::vector<float> workspace;
    std::vector<Fixed> scores(static_cast<std::size_t>(tile_blocks * blocks));
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t index = 0; index < groups.lists * tiles; ++index) {
      const int list = static_cast<int>(index % groups.lists);
      const std::int64_t tile = tiles - 1 - index / groups.lists;  // long rows first
      std::fill(scores.begin(), scores.end(), 0);
      for (int g = 0; g < groups.size; ++g) {
        antidiagonal_scores(problem, list * groups.size + g, tile, workspace, scores.data());
      }
      const std::int64_t first = tile * tile_blocks;
      for (std::int64_t row = first; row < std::min(first + tile_blocks, blocks); ++row) {
        const std::span<const Fixed> row_scores(scores.data() + (row - first) * blocks,
                                                static_cast<std::size_t>(row + 1));
        chosen[static_cast<std::size_t>(list)][static_cast<std::size_t>(row)] =
            cover_row(row_scores, threshold);
      }
    }
  }
  choice.selection = select_blocks(input.tokens, input.share_group, problem.edge, chosen);
  return choice;
}

}  // namespace tessera
