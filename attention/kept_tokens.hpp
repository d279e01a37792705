// From the window softmax of a layer to the positions that its cache keeps (snapkv family, DESIGN.md section
// 4), in steps that a rank with some of the keys can take apart: importance of its own keys, pooling with a
// halo, choice.
//
// Everything is an integer: the mean over the group and the divisor of the pool are constants that no order
// depends on, so that importance is the plain Fixed sum of what the reference averages.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/fixed_point.hpp"
#include "attention/selection.hpp"

namespace tessera {

// by_head: (H, keys) sums or maxima of window_scores.hpp. Returns (K, keys): the sum over the group's heads,
// or the maximum.
enum class GroupRule : std::uint8_t { kSum, kMaximum };
std::vector<Fixed> importance_of_group(std::span<const Fixed> by_head, int heads, int kv_heads,
                                       GroupRule rule);

// pooled[i] = Σ padded[i … i + pool − 1]: padded holds pool / 2 keys before and after those wanted, of
// another shard or zeros past the ends of the prompt. pool is odd; padded.size() = pooled.size() + pool − 1.
void pool_importance(std::span<const Fixed> padded, int pool, std::span<Fixed> pooled);

// Positions that are kept whatever their importance, inside the budget (but never dropped for a smaller one).
struct ForcedTokens {
  std::int64_t sinks = 0;   // first
  std::int64_t recent = 0;  // last

  bool covers(std::int64_t position, std::int64_t length) const {
    return position < sinks || position >= length - recent;
  }
  std::int64_t count(std::int64_t length) const { return sinks + recent < length ? sinks + recent : length; }
};

// pooled: (K, length). Each head keeps its top `tokens`, forced ones first.
HeadLists keep_uniform(std::span<const Fixed> pooled, int kv_heads, std::int64_t tokens,
                       const ForcedTokens& forced);

// Each head first keeps its top max(⌊share · tokens⌋, forced ones); the rest of tokens · K goes to the most
// important that remain over all heads. pooled must hold all KV heads of the layer. Ties go to the lower
// head, then the lower position.
HeadLists keep_adaptive(std::span<const Fixed> pooled, int kv_heads, std::int64_t tokens, double share,
                        const ForcedTokens& forced);

// Tokens that layer `layer` of `layers` keeps under pyramidkv: from tokens + spread in the first layer down
// to tokens − spread in the last, linearly, rounded half away from zero so that the mean over layers is
// exactly `tokens`. spread = slope · tokens, less where the first layer would keep more than the prompt or
// the last fewer than what is forced (as in the authors' code, which keeps the mean too).
std::int64_t pyramid_tokens(std::int64_t tokens, double slope, int layer, int layers, std::int64_t forced,
                            std::int64_t length);

}  // namespace tessera
