#include "attention/kept_tokens.hpp"

#include <algorithm>
#include <cmath>

#include "runtime/core/error.hpp"

namespace tessera {
namespace {

struct Candidate {
  Fixed importance = 0;
  std::int64_t index = 0;  // head · length + position

  bool operator<(const Candidate& other) const {  // better first
    return importance > other.importance || (importance == other.importance && index < other.index);
  }
};

// Marks the `count` best.
void keep_best(std::vector<Candidate>& candidates, std::int64_t count, std::vector<char>& kept) {
  const auto middle = candidates.begin() +
                      std::clamp<std::ptrdiff_t>(count, 0, static_cast<std::ptrdiff_t>(candidates.size()));
  if (middle != candidates.end()) std::nth_element(candidates.begin(), middle, candidates.end());
  std::for_each(candidates.begin(), middle,
                [&](const Candidate& c) { kept[static_cast<std::size_t>(c.index)] = 1; });
}

// Marks the top `tokens` of one head, forced ones first.
void keep_of_head(std::span<const Fixed> pooled, std::int64_t head, std::int64_t length, std::int64_t tokens,
                  const ForcedTokens& forced, std::vector<char>& kept) {
  std::vector<Candidate> candidates;
  for (std::int64_t i = head * length; i < (head + 1) * length; ++i) {
    if (forced.covers(i - head * length, length)) {
      kept[static_cast<std::size_t>(i)] = 1;
    } else {
      candidates.push_back({pooled[static_cast<std::size_t>(i)], i});
    }
  }
  keep_best(candidates, tokens - forced.count(length), kept);
}

HeadLists lists_of(const std::vector<char>& kept, int kv_heads, std::int64_t length) {
  HeadLists lists;
  lists.heads = kv_heads;
  lists.begin.push_back(0);
  for (int head = 0; head < kv_heads; ++head) {
    for (std::int64_t position = 0; position < length; ++position) {
      if (kept[static_cast<std::size_t>(head * length + position)]) {
        lists.values.push_back(static_cast<std::int32_t>(position));
      }
    }
    lists.begin.push_back(static_cast<std::int64_t>(lists.values.size()));
  }
  return lists;
}

std::int64_t length_of(std::span<const Fixed> pooled, int kv_heads) {
  TESSERA_CHECK(kv_heads > 0 && pooled.size() % static_cast<std::size_t>(kv_heads) == 0);
  return static_cast<std::int64_t>(pooled.size()) / kv_heads;
}

}  // namespace

std::vector<Fixed> importance_of_group(std::span<const Fixed> by_head, int heads, int kv_heads,
                                       GroupRule rule) {
  TESSERA_CHECK(kv_heads > 0 && heads % kv_heads == 0);
  const std::size_t keys = by_head.size() / static_cast<std::size_t>(heads);
  const int group = heads / kv_heads;
  std::vector<Fixed> importance(static_cast<std::size_t>(kv_heads) * keys, 0);  // no score is negative
  for (int head = 0; head < heads; ++head) {
    const Fixed* from = by_head.data() + static_cast<std::size_t>(head) * keys;
    Fixed* into = importance.data() + static_cast<std::size_t>(head / group) * keys;
    for (std::size_t j = 0; j < keys; ++j) {
      into[j] = rule == GroupRule::kSum ? into[j] + from[j] : std::max(into[j], from[j]);
    }
  }
  return importance;
}

void pool_importance(std::span<const Fixed> padded, int pool, std::span<Fixed> pooled) {
  const std::size_t width = static_cast<std::size_t>(pool);
  TESSERA_CHECK(pool % 2 == 1 && padded.size() == pooled.size() + width - 1);
  Fixed sum = 0;
  for (std::size_t i = 0; i + 1 < width; ++i) sum += padded[i];
  for (std::size_t i = 0; i < pooled.size(); ++i) {
    sum += padded[i + width - 1];
    pooled[i] = sum;
    sum -= padded[i];
  }
}

HeadLists keep_uniform(std::span<const Fixed> pooled, int kv_heads, std::int64_t tokens,
                       const ForcedTokens& forced) {
  const std::int64_t length = length_of(pooled, kv_heads);
  std::vector<char> kept(pooled.size(), 0);
#pragma omp parallel for schedule(static)
  for (int head = 0; head < kv_heads; ++head) keep_of_head(pooled, head, length, tokens, forced, kept);
  return lists_of(kept, kv_heads, length);
}

HeadLists keep_adaptive(std::span<const Fixed> pooled, int kv_heads, std::int64_t tokens, double share,
                        const ForcedTokens& forced) {
  const std::int64_t length = length_of(pooled, kv_heads);
  const std::int64_t floor = std::min(
      length, std::max(static_cast<std::int64_t>(share * static_cast<double>(tokens)), forced.count(length)));
  std::vector<char> kept(pooled.size(), 0);
#pragma omp parallel for schedule(static)
  for (int head = 0; head < kv_heads; ++head) keep_of_head(pooled, head, length, floor, forced, kept);

  std::vector<Candidate> rest;
  for (std::size_t i = 0; i < pooled.size(); ++i) {
    if (!kept[i]) rest.push_back({pooled[i], static_cast<std::int64_t>(i)});
  }
  keep_best(rest, (std::min(tokens, length) - floor) * kv_heads, kept);
  return lists_of(kept, kv_heads, length);
}

std::int64_t pyramid_tokens(std::int64_t tokens, double slope, int layer, int layers, std::int64_t forced,
                            std::int64_t length) {
  if (layers < 2) return tokens;
  const double mean = static_cast<double>(tokens);
  const double room = static_cast<double>(std::min(length - tokens, tokens - forced));
  const double spread = std::max(0.0, std::min(slope * mean, room));
  const double place = 1.0 - 2.0 * layer / (layers - 1.0);  // 1 in the first layer, −1 in the last
  return tokens + std::llround(spread * place);
}

}  // namespace tessera
