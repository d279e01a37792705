// vertical_slash and flexprefill on the GPU: window sums against fp64, the choice against a sort of those
// very sums, lists against the CPU's builder, and all of it against the naive oracle under the margin rule.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "attention/selection_builder.hpp"
#include "attention/slash_select_cuda.hpp"
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
  bool share = false;
  bool ties = false;
  std::int64_t columns = 20;
  std::int64_t diagonals = 80;
  float sharpness = 1;
  double alpha = -1;  // not negative: flexprefill, with budgets as floors
  std::string name() const {
    return fmt::format("S={} H={} K={} D={} w={} {}{}{} columns {} diagonals {} alpha {} sharpness {}",
                       tokens, heads, kv_heads, head_dim, window, name_of(dtype), share ? " shared" : "",
                       ties ? " ties" : "", columns, diagonals, alpha, sharpness);
  }
};

std::vector<float> draw(std::size_t count, const Case& c, std::mt19937_64& rng) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = c.ties ? static_cast<float>(rng() % 2) : c.sharpness * normal(rng);
  return cuda_test::widened(cuda_test::rounded(values, c.dtype), c.dtype);
}

// Chosen and listed on the device.
struct Lines {
  std::vector<std::vector<std::int32_t>> columns, diagonals;  // a list
  std::vector<std::int64_t> row_begin;
  std::vector<BlockEntry> entries;
};

Lines choose(Gpu& gpu, const cuda::SlashSelectProblem& problem, const Fixed* columns,
             const Fixed* diagonals) {
  const auto bytes = [](std::int64_t count, std::size_t size) {
    return static_cast<std::size_t>(count) * size;
  };
  auto workspace = gpu.poisoned(cuda::slash_select_workspace(problem));
  auto kept_columns = gpu.poisoned(bytes(problem.lists * problem.kept_columns(), 4));
  auto kept_diagonals = gpu.poisoned(bytes(problem.lists * problem.kept_diagonals(), 4));
  auto counts = gpu.poisoned(bytes(2 * problem.lists, 4));
  auto row_begin = gpu.poisoned(bytes(problem.lists * problem.query_blocks() + 1, 8));
  auto entries = gpu.poisoned(bytes(cuda::slash_list_entries(problem), sizeof(BlockEntry)));
  cuda::SlashSelectParams p;
  p.problem = problem;
  p.column_sums = columns;
  p.diagonal_sums = diagonals;
  p.workspace = workspace.data();
  p.columns = kept_columns.as<std::int32_t>();
  p.diagonals = kept_diagonals.as<std::int32_t>();
  p.counts = counts.as<std::int32_t>();
  p.row_begin = row_begin.as<std::int64_t>();
  p.entries = entries.as<BlockEntry>();
  p.stream = gpu.stream();
  cuda::select_slashes_on_device(p);
  gpu.synchronize();
  const auto numbers = gpu.download<std::int32_t>(counts);
  const auto cut = [&](const cuda::DeviceBuffer& buffer, std::int64_t stride, int kind) {
    const auto all = gpu.download<std::int32_t>(buffer);
    std::vector<std::vector<std::int32_t>> lists;
    for (std::int64_t list = 0; list < problem.lists; ++list) {
      const std::int32_t count = numbers[static_cast<std::size_t>(kind * problem.lists + list)];
      REQUIRE(count >= 0);
      REQUIRE(count <= stride);
      lists.emplace_back(all.begin() + list * stride, all.begin() + list * stride + count);
    }
    return lists;
  };
  return {cut(kept_columns, problem.kept_columns(), 0), cut(kept_diagonals, problem.kept_diagonals(), 1),
          gpu.download<std::int64_t>(row_begin), gpu.download<BlockEntry>(entries)};
}

std::vector<std::int32_t> best(const Fixed* sums, const cuda::SlashSelectProblem& problem,
                               std::int64_t forced, std::int64_t budget) {
  const std::int64_t units = problem.tokens;
  std::vector<std::int32_t> order(static_cast<std::size_t>(units));
  std::iota(order.begin(), order.end(), 0);
  std::int64_t keep = std::max(budget, forced);
  if (problem.coverage >= 0) {
    std::vector<Fixed> falling(sums, sums + units);
    std::sort(falling.begin(), falling.end(), std::greater<>());
    std::int64_t covering = 1;
    Fixed total = 0;
    for (const Fixed sum : falling) covering += (total += sum) <= problem.coverage;
    keep = std::max(keep, covering);
  }
  std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    if ((a < forced) != (b < forced)) return a < forced;
    return sums[a] != sums[b] ? sums[a] > sums[b] : a < b;
  });
  order.resize(static_cast<std::size_t>(std::min(keep, units)));
  std::sort(order.begin(), order.end());
  return order;
}

// The choice from sums on the host is that of the device, and so are its lists.
void check_choice(const cuda::SlashSelectProblem& problem, const std::vector<Fixed>& columns,
                  const std::vector<Fixed>& diagonals, const Lines& got) {
  std::vector<std::vector<std::int32_t>> want_columns, want_diagonals;
  for (std::int64_t list = 0; list < problem.lists; ++list) {
    want_columns.push_back(best(columns.data() + list * problem.tokens, problem, 4, problem.columns));
    want_diagonals.push_back(best(diagonals.data() + list * problem.tokens, problem, 64, problem.diagonals));
  }
  const bool same_columns = got.columns == want_columns;
  const bool same_diagonals = got.diagonals == want_diagonals;
  CHECK(same_columns);
  CHECK(same_diagonals);
  const PrefillSelection want = select_diagonals(problem.tokens, false, want_columns, want_diagonals);
  const bool same_rows = got.row_begin == want.row_begin;
  CHECK(same_rows);
  REQUIRE(got.row_begin.back() <= static_cast<std::int64_t>(got.entries.size()));
  REQUIRE(got.row_begin.back() == static_cast<std::int64_t>(want.entries.size()));
  const bool same_entries = std::equal(want.entries.begin(), want.entries.end(), got.entries.begin());
  CHECK(same_entries);
}

double worst_sum(const std::vector<Fixed>& got, const std::vector<reference::Scores>& want) {
  double worst = 0;
  std::size_t at = 0;
  for (const reference::Scores& list : want) {
    for (std::size_t i = 0; i < list.size(); ++i, ++at) {
      const double allowed = kSumMargin * list.value[i] + list.slack[i];
      worst = std::max(worst, std::fabs(from_fixed(got[at]) - list.value[i]) / allowed);
    }
  }
  return worst;
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
  naive.share = c.share;
  naive.q = draw(naive.tokens * naive.heads * naive.dim, c, rng);
  naive.k = draw(naive.tokens * naive.kv_heads * naive.dim, c, rng);
  if (c.ties) {  // keys repeat, and so do their scores
    const std::size_t row = naive.kv_heads * naive.dim;
    for (std::size_t t = 8; t < naive.tokens; ++t) {
      std::copy_n(naive.k.begin() + static_cast<std::ptrdiff_t>((t - 8) * row), row,
                  naive.k.begin() + static_cast<std::ptrdiff_t>(t * row));
    }
  }
  std::vector<float> v = naive.k;
  const testing::PagedKeys paged(naive.k, v, c.tokens, c.kv_heads, c.head_dim, c.dtype,
                                 [](int, std::int64_t) { return true; });

  cuda::DeviceWindowSumsParams p;
  p.problem = {c.tokens, c.heads, c.kv_heads, c.head_dim, c.window, c.share};
  const std::size_t row = naive.heads * naive.dim;
  const std::vector<float> last(
      naive.q.begin() + (c.tokens - p.problem.rows()) * static_cast<std::int64_t>(row), naive.q.end());
  const auto q = gpu.upload(cuda_test::rounded(last, c.dtype));
  const auto pool = gpu.upload(paged.pool);
  const auto table = gpu.upload(paged.table);
  const std::size_t bytes = static_cast<std::size_t>(p.problem.lists() * c.tokens) * sizeof(Fixed);
  auto columns = gpu.poisoned(bytes);
  auto diagonals = gpu.poisoned(bytes);
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
  p.diagonals = diagonals.as<Fixed>();
  p.stream = gpu.stream();
  cuda::window_sums_on_device(p);
  gpu.synchronize();
  const auto column_sums = gpu.download<Fixed>(columns);
  const auto diagonal_sums = gpu.download<Fixed>(diagonals);
  reference::WindowSums want = reference::window_sums(naive, static_cast<std::size_t>(c.window));
  const double worst_column = worst_sum(column_sums, want.vertical);
  const double worst_diagonal = worst_sum(diagonal_sums, want.slash);
  CHECK(worst_column <= 1);
  CHECK(worst_diagonal <= 1);

  // Again: the same bits, whatever was in the workspace.
  cuda::window_sums_on_device(p);
  gpu.synchronize();
  const bool same_columns = gpu.download<Fixed>(columns) == column_sums;
  const bool same_diagonals = gpu.download<Fixed>(diagonals) == diagonal_sums;
  CHECK(same_columns);
  CHECK(same_diagonals);

  cuda::SlashSelectProblem select = {c.tokens, p.problem.lists(), c.columns, c.diagonals};
  const int heads_a_list = static_cast<int>(naive.heads_a_list());
  if (c.alpha >= 0) select.coverage = cuda::coverage_of(c.alpha, p.problem.rows(), heads_a_list);
  const Lines got = choose(gpu, select, p.columns, p.diagonals);
  check_choice(select, column_sums, diagonal_sums, got);
  const auto judge = [&](std::vector<reference::Scores>& scores, std::int64_t forced, std::int64_t budget,
                         const std::vector<std::vector<std::int32_t>>& chosen) {
    for (std::size_t list = 0; list < scores.size(); ++list) {
      reference::Scores& of_list = scores[list];
      for (std::size_t i = 0; i < of_list.size(); ++i) of_list.slack[i] += kSumMargin * of_list.value[i];
      std::vector<char> must(of_list.size(), 0);
      std::fill_n(must.begin(), std::min<std::int64_t>(forced, c.tokens), 1);
      const auto floor = static_cast<std::size_t>(budget);
      reference::Count count = reference::exactly(floor);
      if (c.alpha >= 0) {
        const double total = static_cast<double>(p.problem.rows() * heads_a_list);
        const auto at = [&](double alpha) { return reference::coverage_count(of_list, total, alpha, floor); };
        count = {at(c.alpha - kSumMargin).least, at(c.alpha).want, at(c.alpha + kSumMargin).most};
      }
      const reference::Verdict verdict = reference::judge(of_list, must, count, chosen[list]);
      CHECK_MESSAGE(verdict.right, verdict.fault);
    }
  };
  judge(want.vertical, 4, c.columns, got.columns);
  judge(want.slash, 64, c.diagonals, got.diagonals);
}

}  // namespace

TEST_CASE("vertical_slash, flexprefill on the GPU: sums, choice and lists at irregular sizes") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  const std::int64_t lengths[] = {1, 15, 63, 64, 65, 127, 128, 129, 200, 300, 641, 1000};
  const std::int64_t windows[] = {1, 7, 64, 100, 128, 200, 256};
  const std::int64_t budgets[] = {0, 3, 4, 30, 64, 65, 100, 300, 100000};
  for (int head_dim : {64, 128, 256}) {
    for (std::int64_t length : lengths) {
      Case c;
      c.tokens = length;
      c.kv_heads = 1 + static_cast<int>(rng() % 2);
      c.heads = c.kv_heads * (1 + static_cast<int>(rng() % 3));
      c.head_dim = head_dim;
      c.window = windows[rng() % 7];
      c.dtype = rng() % 2 == 0 ? DType::kBF16 : DType::kF16;
      c.share = rng() % 3 == 0;
      c.ties = rng() % 4 == 0;
      c.columns = budgets[rng() % 9];
      c.diagonals = budgets[rng() % 9];
      c.sharpness = rng() % 2 == 0 ? 1.0F : 1.6F;
      const double alphas[] = {-1, -1, 0, 0.3, 0.9, 0.97};
      c.alpha = alphas[rng() % 6];
      check(gpu, c, rng());
    }
  }
}

TEST_CASE("vertical_slash on the GPU: one of every kind") {  // little work, for sanitizers
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  for (int head_dim : {64, 128, 256}) {
    for (std::int64_t length : {65, 300}) {
      Case c;
      c.tokens = length;
      c.heads = 3;
      c.head_dim = head_dim;
      c.window = 200;
      c.share = length == 65;
      c.ties = head_dim == 64;
      c.alpha = head_dim == 128 ? 0.6 : -1;
      c.dtype = head_dim == 256 ? DType::kF16 : DType::kBF16;
      check(gpu, c, seed + static_cast<std::uint64_t>(head_dim + length));
    }
  }
}

TEST_CASE("vertical_slash on the GPU: many heads, a full window, ranges of several chunks") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  Case c;
  c.tokens = 5000;
  c.heads = 8;
  c.head_dim = 128;
  c.window = 256;
  c.columns = c.diagonals = 256;
  check(gpu, c, seed);
  c.tokens = 3001;
  c.heads = 40;
  c.kv_heads = 4;
  c.window = 130;
  check(gpu, c, seed + 1);
  c.share = true;
  c.window = 512;
  c.heads = 6;
  c.kv_heads = 2;
  check(gpu, c, seed + 2);
}

TEST_CASE("vertical_slash on the GPU: any sums, few values, long lists") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  for (const std::int64_t tokens : {1, 64, 70, 4000, 32 * 1024 + 1, 131072, 150001}) {
    for (int kind = 0; kind < 4; ++kind) {
      CAPTURE(tokens);
      CAPTURE(kind);
      cuda::SlashSelectProblem problem = {tokens, 2, static_cast<std::int64_t>(rng() % 700),
                                          static_cast<std::int64_t>(rng() % 2000)};
      std::vector<Fixed> sums[2];
      for (auto& list : sums) {
        list.resize(static_cast<std::size_t>(problem.lists * tokens));
        for (Fixed& sum : list) {
          sum = kind == 0   ? 0
                : kind == 1 ? static_cast<Fixed>(rng() % 3)
                : kind == 2 ? static_cast<Fixed>(rng() >> (16 + rng() % 48))
                            : static_cast<Fixed>((1LL << 44) + static_cast<std::int64_t>(rng() % 5000));
        }
      }
      const auto columns = gpu.upload(sums[0]);
      const auto diagonals = gpu.upload(sums[1]);
      const auto compare = [&] {
        const Lines got = choose(gpu, problem, columns.as<Fixed>(), diagonals.as<Fixed>());
        check_choice(problem, sums[0], sums[1], got);
      };
      compare();
      if (tokens > 40'000) continue;  // long lists of everything
      const Fixed total = std::accumulate(sums[0].begin(), sums[0].begin() + tokens, Fixed{0});
      for (const Fixed coverage : {Fixed{0}, total / 3, total - 1, total}) {
        CAPTURE(coverage);
        problem.coverage = coverage;
        compare();
      }
    }
  }
}
