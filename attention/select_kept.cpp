#include <algorithm>

#include "attention/kept_tokens.hpp"
#include "attention/select.hpp"
#include "attention/window_scores.hpp"

namespace tessera {
namespace {

// First and last positions alone: streaming. sinks = length keeps everything.
HeadLists keep_fixed(const SelectInput& input, const ForcedTokens& forced) {
  const std::vector<Fixed> none(
      static_cast<std::size_t>(input.tokens) * static_cast<std::size_t>(input.kv_heads), 0);
  return keep_uniform(none, input.kv_heads, 0, forced);
}

// (K, S): the window softmax of the last rows, over the group.
std::vector<Fixed> window_importance(const SelectInput& input, std::int64_t window, GroupRule rule) {
  WindowProblem problem;
  problem.heads = input.heads;
  problem.kv_heads = input.kv_heads;
  problem.head_dim = input.head_dim;
  problem.rows = std::min(window, input.tokens);
  problem.first_position = input.tokens - problem.rows;
  problem.q = input.query(problem.first_position, 0);
  problem.keys = input.tokens;
  problem.k = input.k;
  problem.scale = input.scale;
  problem.round_to = input.model_dtype;
  std::vector<Fixed> by_head(static_cast<std::size_t>(input.heads) * static_cast<std::size_t>(input.tokens),
                             0);
  WindowSums sums;
  (rule == GroupRule::kSum ? sums.columns : sums.maxima) = by_head.data();
  window_sums(problem, sums);
  return importance_of_group(by_head, input.heads, input.kv_heads, rule);
}

// Average pooling, zeros past both ends, as a sum.
std::vector<Fixed> pooled_importance(const std::vector<Fixed>& importance, int kv_heads, int pool) {
  const std::size_t length = importance.size() / static_cast<std::size_t>(kv_heads);
  const std::size_t halo = static_cast<std::size_t>(pool / 2);
  std::vector<Fixed> padded(length + 2 * halo, 0);
  std::vector<Fixed> pooled(importance.size());
  for (std::size_t head = 0; head < static_cast<std::size_t>(kv_heads); ++head) {
    std::copy_n(importance.data() + head * length, length, padded.data() + halo);
    pool_importance(padded, pool, {pooled.data() + head * length, length});
  }
  return pooled;
}

}  // namespace

HeadLists select_kept(const SelectInput& input, const MethodSettings& settings) {
  const Method& method = settings.method();
  if (method.cache != CacheRule::kEvict) return keep_fixed(input, {input.tokens, 0});
  if (method.unit == SelectUnit::kLocalWindow) {
    return keep_fixed(input, {settings.whole("sinks"), settings.whole("window")});
  }

  const ForcedTokens forced{settings.whole("sinks"), settings.whole("recent")};
  const bool adaptive_heads = method.budget == BudgetRule::kAdaptiveHeads;
  const std::vector<Fixed> importance = window_importance(
      input, settings.whole("window"), adaptive_heads ? GroupRule::kMaximum : GroupRule::kSum);
  const std::vector<Fixed> pooled =
      pooled_importance(importance, input.kv_heads, static_cast<int>(settings.whole("pool")));

  std::int64_t tokens = settings.whole("tokens");
  if (adaptive_heads) return keep_adaptive(pooled, input.kv_heads, tokens, settings.real("share"), forced);
  if (method.budget == BudgetRule::kAdaptiveLayers) {
    tokens = pyramid_tokens(tokens, settings.real("slope"), input.layer, input.layers,
                            forced.count(input.tokens), input.tokens);
  }
  return keep_uniform(pooled, input.kv_heads, tokens, forced);
}

}  // namespace tessera
