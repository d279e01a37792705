// Which tokens the cache keeps after a prompt under snapkv, ada_snapkv and pyramidkv: importance and choice
// on the device. The lists come to the host, which owns the block tables.
#include <algorithm>
#include <numeric>

#include "attention/kept_select_cuda.hpp"
#include "attention/kept_tokens.hpp"
#include "attention/window_sums_cuda.hpp"
#include "runtime/core/error.hpp"
#include "runtime/model/device_prompt.hpp"

namespace tessera::cuda {
namespace {

// Budgets as select_kept and kept_tokens.hpp have them.
KeptSelectProblem kept_problem(const MethodSettings& decode, std::int64_t length, int kv_heads,
                               const LayerPlans& layers, int layer) {
  KeptSelectProblem problem;
  problem.tokens = length;
  problem.lists = kv_heads;
  problem.sinks = decode.whole("sinks");
  problem.recent = decode.whole("recent");
  problem.pool = decode.whole("pool");
  const std::int64_t forced = problem.forced();
  std::int64_t tokens = decode.whole("tokens");
  if (decode.method().budget == BudgetRule::kAdaptiveLayers) {
    tokens =
        pyramid_tokens(tokens, decode.real("slope"), layers.index_of(layer), layers.count(), forced, length);
  }
  problem.keep = std::min(length, std::max(tokens, forced));
  if (decode.method().budget != BudgetRule::kAdaptiveHeads || tokens >= length) return problem;
  const auto share = static_cast<std::int64_t>(decode.real("share") * static_cast<double>(tokens));
  problem.keep = std::min(length, std::max(share, forced));
  problem.shared_keep = kv_heads * (problem.keep + std::max<std::int64_t>(0, tokens - problem.keep));
  return problem;
}

// A head each keeps the first `keep` positions: all of them, or none.
HeadLists first_positions(int heads, std::int64_t keep) {
  HeadLists lists;
  lists.heads = heads;
  lists.begin.push_back(0);
  for (int head = 0; head < heads; ++head) {
    for (std::int64_t i = 0; i < keep; ++i) lists.values.push_back(static_cast<std::int32_t>(i));
    lists.begin.push_back(static_cast<std::int64_t>(lists.values.size()));
  }
  return lists;
}

// chosen: as KeptSelectParams says.
HeadLists split(const KeptSelectProblem& problem, std::vector<std::int32_t> chosen) {
  HeadLists lists;
  lists.heads = problem.lists;
  lists.begin.push_back(0);
  for (std::int64_t head = 1; head <= problem.lists; ++head) {
    const std::int64_t of_heads =
        problem.shared_keep == 0
            ? head * problem.keep
            : std::lower_bound(chosen.begin(), chosen.end(), head * problem.tokens) - chosen.begin();
    lists.begin.push_back(of_heads);
  }
  if (problem.shared_keep > 0) {
    for (std::int32_t& unit : chosen) unit = static_cast<std::int32_t>(unit % problem.tokens);
  }
  lists.values = std::move(chosen);
  return lists;
}

}  // namespace

// Sums of chunks of keys grow with the rows of the window. Heads that compete over ranks, and groups that lie
// on several, go through the host, which asks the other ranks.
bool DeviceModel::keeps_on_device() const {
  const bool asks_others = kv_replicas_ > 1 || plan_.decode.method().budget == BudgetRule::kAdaptiveHeads;
  return plan_.decode.whole("window") <= kMostDeviceWindow && !(is_shared() && asks_others);
}

HeadLists DeviceModel::keep_on_device(const Prompt& prompt, int layer) {
  const std::int64_t tokens = prompt.tokens();
  const auto kv_heads = static_cast<int>(config_.kv_heads);
  const KeptSelectProblem problem = kept_problem(plan_.decode, tokens, kv_heads, layers_, layer);
  if (problem.kept() == 0 || (problem.shared_keep == 0 && problem.keep == tokens))
    return first_positions(kv_heads, problem.keep);
  const bool adaptive = plan_.decode.method().budget == BudgetRule::kAdaptiveHeads;
  WindowSumsProblem window;
  window.tokens = tokens;
  window.heads = static_cast<int>(config_.heads);
  window.kv_heads = kv_heads;
  window.head_dim = static_cast<int>(config_.head_dim);
  window.window = plan_.decode.whole("window");
  window.share_group = true;
  window.use = adaptive ? WindowUse::kLargest : WindowUse::kTokens;
  const LineSums importance = sum_window(prompt, layer, window);

  mark(&clock_, Phase::kPrefill, layer, Operation::kSelect);
  const StreamPool::Block workspace = pool_.take(kept_select_workspace(problem)),
                          chosen = pool_.take_array<std::int32_t>(problem.kept());
  KeptSelectParams p;
  p.problem = problem;
  p.importance = importance.columns.as<const Fixed>();
  p.workspace = workspace.data();
  p.chosen = chosen.as<std::int32_t>();
  p.stream = stream_;
  select_kept_on_device(p);
  std::vector<std::int32_t> positions(static_cast<std::size_t>(problem.kept()));
  wait_for_stream("kept tokens");
  copy_to_host(positions.data(), p.chosen, chosen.bytes(), stream_);
  stream_.synchronize();
  return split(problem, std::move(positions));
}

}  // namespace tessera::cuda
