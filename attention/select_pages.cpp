#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "attention/page_scores.hpp"
#include "attention/select.hpp"
#include "attention/top_units.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

struct Candidates {
  const SelectInput* input = nullptr;
  const PageBounds* bounds = nullptr;
  std::int64_t pages = 0;  // finished pages before the current one
};

// queries: (heads, D), of heads that read kv_head; their bounds are summed.
std::vector<float> scores_of(const Candidates& c, const float* queries, int heads, int kv_head, float scale) {
  std::vector<float> scores(static_cast<std::size_t>(c.pages));
  const SplitQuery query = split_query(queries, heads, c.input->head_dim);
  const std::int64_t offset = kv_head * c.bounds->pages * c.bounds->head_dim;
  PageScoreParams p;
  p.pages = c.pages;
  p.head_dim = c.bounds->head_dim;
  p.lowest = c.bounds->lowest.data() + offset;
  p.highest = c.bounds->highest.data() + offset;
  p.positive = query.positive.data();
  p.negative = query.negative.data();
  p.scale = scale;
  p.scores = scores.data();
  score_pages(p);
  return scores;
}

// W of topp_pages for the heads of a group.
std::vector<Fixed> importance_of(const Candidates& c, const float* queries, int heads, int kv_head) {
  std::vector<Fixed> importance(static_cast<std::size_t>(c.pages), 0);
  if (c.pages == 0) return importance;
  for (int head = 0; head < heads; ++head) {
    const float* query = queries + static_cast<std::int64_t>(head) * c.input->head_dim;
    std::vector<float> scores = scores_of(c, query, 1, kv_head, c.input->scale);
    exponentiate_scores(scores, *std::max_element(scores.begin(), scores.end()));
    add_shares(scores, sum_fixed(scores), importance);
  }
  return importance;
}

}  // namespace

std::vector<std::int32_t> highest_scores(std::span<const float> scores, std::int64_t count) {
  std::vector<std::int32_t> ranks;
  ranks.reserve(scores.size());
  for (float score : scores) {
    ranks.push_back(std::isnan(score) ? std::numeric_limits<std::int32_t>::min() : ordered_bits(score));
  }
  return top_units<std::int32_t>(ranks, count);
}

std::vector<std::int32_t> cover_importance(std::span<const Fixed> importance, double coverage,
                                           std::int64_t least) {
  const std::int64_t all = static_cast<std::int64_t>(importance.size());
  if (coverage >= 1) return top_units(importance, all);
  std::vector<Fixed> sorted(importance.begin(), importance.end());
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  Fixed total = 0;
  for (Fixed value : importance) total += value;
  const double wanted = coverage * static_cast<double>(total);
  std::int64_t count = 0;
  for (Fixed held = 0; count < all && static_cast<double>(held) < wanted; ++count) {
    held += sorted[static_cast<std::size_t>(count)];
  }
  return top_units(importance, std::max(count, least));
}

HeadLists select_pages(const SelectInput& input, const float* q, const PageBounds& bounds,
                       const MethodSettings& settings) {
  TESSERA_CHECK(input.tokens > 0 && bounds.kv_heads == input.kv_heads && bounds.head_dim == input.head_dim);
  const std::int64_t current = (input.tokens - 1) / kPageTokens;
  TESSERA_CHECK(bounds.pages >= current);
  const Candidates candidates{&input, &bounds, current};
  const int group = input.heads / input.kv_heads;
  const bool threshold = settings.method().budget == BudgetRule::kThreshold;
  const bool per_query_head = !threshold && settings.whole("per_query_head") != 0;
  const double coverage = threshold ? settings.real("coverage") : 0;
  const std::int64_t budget = settings.whole(threshold ? "floor" : "tokens") / kPageTokens;

  const int shared = per_query_head ? 1 : group;  // query heads a list
  HeadLists lists;
  lists.heads = input.heads / shared;
  std::vector<std::vector<std::int32_t>> chosen(static_cast<std::size_t>(lists.heads));
#pragma omp parallel for schedule(static)
  for (int list = 0; list < lists.heads; ++list) {
    const float* queries = q + static_cast<std::int64_t>(list) * shared * input.head_dim;
    const int kv_head = list * shared / group;
    auto& pages = chosen[static_cast<std::size_t>(list)];
    if (threshold) {
      pages = cover_importance(importance_of(candidates, queries, shared, kv_head), coverage, budget);
    } else {
      pages = highest_scores(scores_of(candidates, queries, shared, kv_head, 1.0f), budget);
    }
    pages.push_back(static_cast<std::int32_t>(current));
  }
  lists.begin.push_back(0);
  for (const auto& pages : chosen) {
    lists.values.insert(lists.values.end(), pages.begin(), pages.end());
    lists.begin.push_back(static_cast<std::int64_t>(lists.values.size()));
  }
  return lists;
}

}  // namespace tessera
