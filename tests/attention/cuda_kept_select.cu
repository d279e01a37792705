// The snapkv family on the GPU: importance of tokens against fp64, the choice against that of the CPU from
// the very same sums, and the choice of one budget for each head against the naive oracle under its margin.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>

#include "attention/kept_select_cuda.hpp"
#include "attention/kept_tokens.hpp"
#include "attention/window_sums_cuda.hpp"
#include "tests/attention/paged_keys.hpp"
#include "tests/cuda_support.hpp"
#include "tests/reference/naive_select.hpp"

using namespace tessera;
using cuda_test::Gpu;

namespace {

// Sums of fp32 arithmetic on the tensor core differ from fp64 by so much of themselves.
constexpr double kSumMargin = 2e-5;

struct Case {
  std::int64_t tokens = 1;
  int heads = 1;
  int kv_heads = 1;
  int head_dim = 64;
  std::int64_t window = 64;
  DType dtype = DType::kBF16;
  bool largest = false;  // ada_snapkv
  std::int64_t budget = 20;
  std::int64_t sinks = 4;
  std::int64_t recent = 16;
  std::int64_t pool = 21;
  double share = 0.2;
  std::string name() const {
    return fmt::format("S={} H={} K={} D={} w={} {}{} budget {} sinks {} recent {} pool {} share {}", tokens,
                       heads, kv_heads, head_dim, window, name_of(dtype), largest ? " largest" : "", budget,
                       sinks, recent, pool, share);
  }
};

std::vector<float> draw(std::size_t count, DType dtype, std::mt19937_64& rng) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(rng);
  return cuda_test::widened(cuda_test::rounded(values, dtype), dtype);
}

cuda::KeptSelectProblem problem_of(const Case& c) {
  cuda::KeptSelectProblem problem;
  problem.tokens = c.tokens;
  problem.lists = c.kv_heads;
  problem.sinks = c.sinks;
  problem.recent = c.recent;
  problem.pool = c.pool;
  problem.keep = std::min(c.tokens, std::max(c.budget, problem.forced()));
  if (!c.largest) return problem;
  problem.keep = std::min(
      c.tokens,
      std::max(static_cast<std::int64_t>(c.share * static_cast<double>(c.budget)), problem.forced()));
  const std::int64_t rest = std::max<std::int64_t>(0, std::min(c.budget, c.tokens) - problem.keep);
  problem.shared_keep = c.kv_heads * (problem.keep + rest);
  return problem;
}

using Lists = std::vector<std::vector<std::int32_t>>;

Lists choose(Gpu& gpu, const cuda::KeptSelectProblem& problem, const Fixed* importance) {
  auto workspace = gpu.poisoned(cuda::kept_select_workspace(problem));
  auto chosen = gpu.poisoned(static_cast<std::size_t>(problem.kept()) * 4);
  cuda::KeptSelectParams p;
  p.problem = problem;
  p.importance = importance;
  p.workspace = workspace.data();
  p.chosen = chosen.as<std::int32_t>();
  p.stream = gpu.stream();
  cuda::select_kept_on_device(p);
  gpu.synchronize();
  const auto all = gpu.download<std::int32_t>(chosen);
  Lists lists(static_cast<std::size_t>(problem.lists));
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (problem.shared_keep == 0) {
      lists[i / static_cast<std::size_t>(problem.keep)].push_back(all[i]);
      continue;
    }
    REQUIRE(all[i] >= 0);
    const std::int64_t list = all[i] / problem.tokens;
    REQUIRE(list < problem.lists);
    lists[static_cast<std::size_t>(list)].push_back(static_cast<std::int32_t>(all[i] % problem.tokens));
  }
  return lists;
}

// By the CPU, from the same sums.
Lists choose_on_host(const Case& c, const std::vector<Fixed>& importance) {
  const auto keys = static_cast<std::size_t>(c.tokens);
  const auto half = static_cast<std::size_t>(c.pool / 2);
  std::vector<Fixed> pooled(importance.size());
  for (std::size_t head = 0; head < static_cast<std::size_t>(c.kv_heads); ++head) {
    std::vector<Fixed> padded(keys + 2 * half, 0);
    std::copy_n(importance.data() + head * keys, keys, padded.data() + half);
    pool_importance(padded, static_cast<int>(c.pool), std::span(pooled).subspan(head * keys, keys));
  }
  const TokenScores scores{
      c.kv_heads, c.tokens, {TokenRange{0, c.tokens}, TokenRange{c.tokens, c.tokens}}, pooled};
  const ForcedTokens forced{c.sinks, c.recent};
  const HeadLists kept =
      c.largest ? keep_adaptive(scores, c.budget, c.share, forced) : keep_uniform(scores, c.budget, forced);
  Lists lists;
  for (int head = 0; head < kept.heads; ++head) {
    const auto list = kept.of(head);
    lists.emplace_back(list.begin(), list.end());
  }
  return lists;
}

void check(Gpu& gpu, const Case& c, std::uint64_t seed) {
  CAPTURE(c.name());
  std::mt19937_64 rng(seed);
  reference::SelectProblem naive;
  naive.tokens = static_cast<std::size_t>(c.tokens);
  naive.heads = static_cast<std::size_t>(c.heads);
  naive.kv_heads = static_cast<std::size_t>(c.kv_heads);
  naive.dim = static_cast<std::size_t>(c.head_dim);
  naive.scale = static_cast<double>(static_cast<float>(1 / std::sqrt(c.head_dim)));
  naive.model = c.dtype == DType::kBF16 ? reference::Rounding::kBF16 : reference::Rounding::kF16;
  naive.q = draw(naive.tokens * naive.heads * naive.dim, c.dtype, rng);
  naive.k = draw(naive.tokens * naive.kv_heads * naive.dim, c.dtype, rng);
  std::vector<float> v = naive.k;
  const testing::PagedKeys paged(naive.k, v, c.tokens, c.kv_heads, c.head_dim, c.dtype,
                                 [](int, std::int64_t) { return true; });
  cuda::DeviceWindowSumsParams p;
  p.problem = {c.tokens,
               c.heads,
               c.kv_heads,
               c.head_dim,
               c.window,
               true,
               c.largest ? cuda::WindowUse::kLargest : cuda::WindowUse::kTokens};
  const std::size_t row = naive.heads * naive.dim;
  const std::vector<float> last(
      naive.q.begin() + (c.tokens - p.problem.rows()) * static_cast<std::int64_t>(row), naive.q.end());
  const auto q = gpu.upload(cuda_test::rounded(last, c.dtype));
  const auto pool = gpu.upload(paged.pool);
  const auto table = gpu.upload(paged.table);
  auto columns = gpu.poisoned(static_cast<std::size_t>(c.kv_heads * c.tokens) * sizeof(Fixed));
  auto workspace = gpu.poisoned(cuda::window_sums_workspace(p.problem));
  p.q = q.data();
  p.q_row_stride = static_cast<std::int64_t>(row);
  p.kv = paged.view;
  p.kv.slots = pool.data();
  p.kv.table = table.as<std::int32_t>();
  p.pool_slots = static_cast<std::int64_t>(paged.pool.size() / paged.view.slot_bytes);
  p.scale = static_cast<float>(naive.scale);
  p.workspace = workspace.data();
  p.columns = columns.as<Fixed>();
  p.stream = gpu.stream();
  cuda::window_sums_on_device(p);
  gpu.synchronize();
  const auto importance = gpu.download<Fixed>(columns);

  // Unpooled, as the oracle's mean over the group is.
  const auto over = c.largest ? reference::OverGroup::kMax : reference::OverGroup::kMean;
  const double heads_a_list = c.largest ? 1.0 : static_cast<double>(naive.group());
  const auto exact = reference::pooled_token_scores(naive, static_cast<std::size_t>(c.window), 1, over);
  double worst = 0;
  for (std::size_t list = 0; list < exact.size(); ++list) {
    for (std::size_t j = 0; j < naive.tokens; ++j) {
      const double got = from_fixed(importance[list * naive.tokens + j]) / heads_a_list;
      const double allowed = exact[list].slack[j] + kSumMargin * exact[list].value[j];
      worst = std::max(worst, std::fabs(got - exact[list].value[j]) / allowed);
    }
  }
  CHECK(worst <= 1);

  const cuda::KeptSelectProblem problem = problem_of(c);
  const Lists got = choose(gpu, problem, columns.as<Fixed>());
  const bool as_on_host = got == choose_on_host(c, importance);
  CHECK(as_on_host);
  if (c.largest) return;
  auto want = reference::pooled_token_scores(naive, static_cast<std::size_t>(c.window),
                                             static_cast<std::size_t>(c.pool), over);
  for (std::size_t list = 0; list < want.size(); ++list) {
    for (std::size_t j = 0; j < naive.tokens; ++j) want[list].slack[j] += kSumMargin * want[list].value[j];
    std::vector<char> must(naive.tokens, 0);
    for (std::int64_t j = 0; j < c.tokens; ++j)
      must[static_cast<std::size_t>(j)] = ForcedTokens{c.sinks, c.recent}.covers(j, c.tokens);
    const auto verdict =
        reference::judge(want[list], must, reference::exactly(static_cast<std::size_t>(c.budget)), got[list]);
    CHECK_MESSAGE(verdict.right, verdict.fault);
  }
}

}  // namespace

TEST_CASE("snapkv on the GPU: importance and choice at irregular sizes") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  const std::int64_t lengths[] = {1, 15, 63, 64, 65, 128, 129, 300, 641, 1000};
  const std::int64_t windows[] = {1, 7, 64, 100, 200, 256};
  const std::int64_t budgets[] = {1, 20, 30, 100, 400, 100000};
  const std::int64_t pools[] = {1, 3, 21, 101};
  for (const int head_dim : {64, 128, 256}) {
    for (const std::int64_t length : lengths) {
      for (const bool largest : {false, true}) {
        Case c;
        c.tokens = length;
        c.kv_heads = 1 + static_cast<int>(rng() % 3);
        c.heads = c.kv_heads * (1 + static_cast<int>(rng() % 3));
        c.head_dim = head_dim;
        c.window = windows[rng() % 6];
        c.dtype = rng() % 2 == 0 ? DType::kBF16 : DType::kF16;
        c.largest = largest;
        c.budget = budgets[rng() % 6];
        c.sinks = rng() % 3 == 0 ? 0 : 4;
        c.recent = rng() % 3 == 0 ? 0 : static_cast<std::int64_t>(rng() % 130);
        c.pool = pools[rng() % 4];
        c.share = rng() % 4 == 0 ? 0 : 0.2;
        check(gpu, c, rng());
      }
    }
  }
}

TEST_CASE("snapkv on the GPU: any sums, few values, long lists") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  for (const std::int64_t tokens : {70, 4000, 40000, 131072, 150001}) {
    for (int kind = 0; kind < 4; ++kind) {
      for (const bool largest : {false, true}) {
        CAPTURE(tokens);
        CAPTURE(kind);
        Case c;
        c.tokens = tokens;
        c.kv_heads = c.heads = tokens > 100'000 ? 2 : 5;
        c.largest = largest;
        c.budget = 1 + static_cast<std::int64_t>(rng() % 3000);
        c.recent = 128;
        c.pool = kind == 2 ? 1 : 21;
        std::vector<Fixed> sums(static_cast<std::size_t>(c.kv_heads * tokens));
        for (Fixed& sum : sums) {
          sum = kind == 0   ? 0
                : kind == 1 ? static_cast<Fixed>(rng() % 3)
                : kind == 2 ? static_cast<Fixed>(rng() >> (16 + rng() % 48))
                            : static_cast<Fixed>((1LL << 44) + static_cast<std::int64_t>(rng() % 5000));
        }
        const auto importance = gpu.upload(sums);
        const Lists got = choose(gpu, problem_of(c), importance.as<Fixed>());
        const bool same = got == choose_on_host(c, sums);
        CHECK(same);
      }
    }
  }
}
