// block_sparse on the GPU chooses what it chooses on the CPU, bit for bit: in gaussian problems, and in
// few-bit ones, whose scores tie. Blocks of 16 and 32 tokens may be chosen otherwise in gaussian problems
// where their score lies at the border.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <iterator>
#include <map>
#include <memory>

#include "attention/block_select_cuda.hpp"
#include "attention/select.hpp"
#include "tests/attention/paged_keys.hpp"
#include "tests/cuda_support.hpp"

using namespace tessera;
using cuda_test::Gpu;

namespace {

struct Case {
  std::int64_t tokens = 1;
  int heads = 1;
  int kv_heads = 1;
  int head_dim = 64;
  DType dtype = DType::kBF16;
  std::int64_t edge = 64;
  std::int64_t budget = 4;
  bool ties = false;
  std::string name() const {
    return fmt::format("S={} H={} K={} D={} {} edge {} budget {}{}", tokens, heads, kv_heads, head_dim,
                       name_of(dtype), edge, budget, ties ? " ties" : "");
  }
};

std::vector<float> draw(std::size_t count, const Case& c, std::mt19937_64& rng) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = c.ties ? static_cast<float>(rng() % 3) - 1 : normal(rng);
  return cuda_test::widened(cuda_test::rounded(values, c.dtype), c.dtype);
}

std::vector<BlockEntry> row_of(const std::vector<std::int64_t>& begin, const std::vector<BlockEntry>& entries,
                               std::int64_t row) {
  return {entries.begin() + begin[static_cast<std::size_t>(row)],
          entries.begin() + begin[static_cast<std::size_t>(row + 1)]};
}

// Of the CPU's rows of 64 queries, those whose blocks end last in a row of the GPU are that row: earlier ones
// lack pages past their diagonal.
std::int64_t cpu_row(std::int64_t row, const Case& c, std::int64_t cpu_rows) {
  const std::int64_t shares = c.edge / kQueryBlockRows;
  return std::min((row + 1) * shares, cpu_rows) - 1;
}

// Blocks of 16 and 32 tokens, in lists of one block an entry.
class SmallLists {
 public:
  SmallLists(const Case& c, const SelectInput& input, const PrefillChoice& cpu) : case_(c), cpu_(cpu) {
    q_means_ = means(input.q, c.heads);
    k_means_ = means(input.k, c.kv_heads);
  }

  std::int64_t rows() const { return ceil_div(case_.tokens, case_.edge); }

  // Whether a list could be that of the row. Chosen: its blocks.
  bool fits(int head, std::int64_t row, const std::vector<BlockEntry>& list,
            std::vector<std::int32_t>& chosen) const {
    chosen.clear();
    const std::int64_t pages = case_.edge / kPageTokens;
    const std::int64_t last = std::min(case_.tokens, (row + 1) * case_.edge) - 1;
    for (const BlockEntry& entry : list) {
      const std::int64_t page = entry.block() * 4 + std::countr_zero(entry.pages());
      const std::int64_t seen = std::min(pages, last / kPageTokens - page + 1);
      if (entry.pages() == 0 || page % pages != 0 || seen <= 0) return false;
      if (entry.pages() != ((1U << seen) - 1) << page % 4) return false;
      chosen.push_back(static_cast<std::int32_t>(page / pages));
    }
    const auto& wanted = cpu_.native.blocks[static_cast<std::size_t>(head)][static_cast<std::size_t>(row)];
    if (chosen == wanted) return true;
    // Equal scores are equal on either side where means are exact: those of a last block of 5 tokens are not.
    const bool exact = case_.tokens % case_.edge == 0 || row + 1 < rows();
    if ((case_.ties && exact) || chosen.size() != wanted.size()) return false;
    if (std::adjacent_find(chosen.begin(), chosen.end(), std::greater_equal<>()) != chosen.end())
      return false;
    // What only one of them has lies at the border: nothing that the GPU left out beats what it took instead.
    std::vector<std::int32_t> taken, left;
    std::set_difference(chosen.begin(), chosen.end(), wanted.begin(), wanted.end(),
                        std::back_inserter(taken));
    std::set_difference(wanted.begin(), wanted.end(), chosen.begin(), chosen.end(), std::back_inserter(left));
    for (const std::int32_t a : taken) {
      for (const std::int32_t b : left) {
        if (b == 0 || b >= row - 1) return false;  // forced
        const Score of_a = score(head, row, a);
        const Score of_b = score(head, row, b);
        if (of_b.sum - of_a.sum > 0x1p-15 * (of_a.magnitude + of_b.magnitude)) return false;
      }
    }
    return true;
  }

 private:
  struct Score {
    double sum = 0, magnitude = 0;
  };
  Score score(int head, std::int64_t row, std::int64_t block) const {
    const std::int64_t d = case_.head_dim;
    const float* q = q_means_.data() + (head * rows() + row) * d;
    const float* k = k_means_.data() + (head / (case_.heads / case_.kv_heads) * rows() + block) * d;
    Score s;
    for (std::int64_t i = 0; i < d; ++i) {
      const double product = double{q[i]} * double{k[i]};
      s.sum += product;
      s.magnitude += std::abs(product);
    }
    return s;
  }
  // (heads, rows, D)
  std::vector<float> means(const float* x, int heads) const {
    const std::int64_t d = case_.head_dim;
    std::vector<float> result(static_cast<std::size_t>(heads * rows() * d));
    for (int head = 0; head < heads; ++head) {
      for (std::int64_t row = 0; row < rows(); ++row) {
        const std::int64_t end = std::min(case_.tokens, (row + 1) * case_.edge);
        for (std::int64_t i = 0; i < d; ++i) {
          double sum = 0;
          for (std::int64_t token = row * case_.edge; token < end; ++token) {
            sum += double{x[(token * heads + head) * d + i]};
          }
          result[static_cast<std::size_t>((head * rows() + row) * d + i)] =
              static_cast<float>(sum / static_cast<double>(end - row * case_.edge));
        }
      }
    }
    return result;
  }

  const Case& case_;
  const PrefillChoice& cpu_;
  std::vector<float> q_means_, k_means_;
};

void check(Gpu& gpu, const Case& c, std::uint64_t seed) {
  CAPTURE(c.name());
  std::mt19937_64 rng(seed);
  const auto d = static_cast<std::size_t>(c.head_dim);
  const std::size_t tokens = static_cast<std::size_t>(c.tokens);
  const std::vector<float> q = draw(tokens * static_cast<std::size_t>(c.heads) * d, c, rng);
  std::vector<float> k = draw(tokens * static_cast<std::size_t>(c.kv_heads) * d, c, rng);
  std::vector<float> v = k;

  SelectInput input;
  input.tokens = c.tokens;
  input.heads = c.heads;
  input.kv_heads = c.kv_heads;
  input.head_dim = c.head_dim;
  input.q = q.data();
  input.k = k.data();
  input.scale = 1;
  const MethodSettings settings(
      find_method(Phase::kPrefill, "block_sparse"),
      std::map<std::string, std::string>{{"block_sparse.edge", fmt::format("{}", c.edge)},
                                         {"block_sparse.blocks", fmt::format("{}", c.budget)}});
  const PrefillChoice choice = select_prefill(input, settings);
  const PrefillSelection& expected = choice.selection;

  const tessera::testing::PagedKeys paged(k, v, c.tokens, c.kv_heads, c.head_dim, c.dtype,
                                          [](int, std::int64_t) { return true; });
  const auto q_device = gpu.upload(cuda_test::rounded(q, c.dtype));
  const auto pool_device = gpu.upload(paged.pool);
  const auto table_device = gpu.upload(paged.table);
  cuda::DeviceBlockSelectParams p;
  p.problem = {c.tokens, c.heads, c.kv_heads, c.head_dim, c.edge, c.budget};
  p.q = q_device.data();
  p.q_row_stride = static_cast<std::int64_t>(c.heads) * c.head_dim;
  p.kv = paged.view;
  p.kv.slots = pool_device.data();
  p.kv.table = table_device.as<std::int32_t>();
  auto workspace = gpu.poisoned(cuda::block_select_workspace(p.problem));
  const std::int64_t rows = p.problem.rows();
  auto row_begin = gpu.poisoned(static_cast<std::size_t>(c.heads * rows + 1) * sizeof(std::int64_t));
  const std::int64_t count = cuda::block_list_entries(p.problem);
  auto entries = gpu.poisoned(static_cast<std::size_t>(count) * sizeof(BlockEntry));
  p.workspace = workspace.data();
  p.row_begin = row_begin.as<std::int64_t>();
  p.entries = entries.as<BlockEntry>();
  p.stream = gpu.stream();
  cuda::select_blocks_on_device(p);
  gpu.synchronize();

  const auto begin = gpu.download<std::int64_t>(row_begin);
  const auto list = gpu.download<BlockEntry>(entries);
  REQUIRE(begin.front() == 0);
  REQUIRE(begin.back() == count);
  std::size_t different = 0;
  std::size_t at_border = 0;
  const std::unique_ptr<SmallLists> small =
      c.edge < kBlockTokens ? std::make_unique<SmallLists>(c, input, choice) : nullptr;
  std::vector<std::int32_t> chosen;
  for (int head = 0; head < c.heads; ++head) {
    for (std::int64_t row = 0; row < rows; ++row) {
      REQUIRE(begin[static_cast<std::size_t>(head * rows + row)] <=
              begin[static_cast<std::size_t>(head * rows + row + 1)]);
      if (small != nullptr) {
        const auto h = static_cast<std::size_t>(head);
        if (!small->fits(head, row, row_of(begin, list, head * rows + row), chosen)) {
          ++different;
        } else if (chosen != choice.native.blocks[h][static_cast<std::size_t>(row)]) {
          ++at_border;
        }
        continue;
      }
      const auto want = expected.row(head, cpu_row(row, c, expected.query_blocks()));
      if (row_of(begin, list, head * rows + row) != std::vector<BlockEntry>(want.begin(), want.end())) {
        ++different;
      }
    }
  }
  CHECK(different == 0);
  CHECK(at_border <= 1 + static_cast<std::size_t>(c.heads * rows) / 10);
}

// Fresh problems of every kind: with and without ties, of these edges, head dimensions and lengths.
void check_every(std::vector<std::int64_t> edges, std::vector<int> head_dims,
                 std::vector<std::int64_t> lengths) {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  const std::int64_t budgets[] = {1, 3, 4, 7, 20, 100000};
  for (bool ties : {false, true}) {
    for (std::int64_t edge : edges) {
      for (int head_dim : head_dims) {
        for (std::int64_t length : lengths) {
          Case c;
          c.tokens = length;
          c.kv_heads = 1 + static_cast<int>(rng() % 2);
          c.heads = c.kv_heads * (1 + static_cast<int>(rng() % 4));
          c.head_dim = head_dim;
          c.dtype = rng() % 2 == 0 ? DType::kBF16 : DType::kF16;
          c.edge = edge;
          c.budget = budgets[rng() % 6];
          c.ties = ties;
          check(gpu, c, rng());
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("block_sparse on the GPU: the CPU's choice") {
  check_every({64, 128}, {64, 128, 256}, {1, 15, 64, 65, 127, 128, 129, 200, 1000, 4097});
}

TEST_CASE("block_sparse on the GPU: small blocks, the CPU's choice but at the border") {
  check_every({16, 32}, {64, 128}, {1, 15, 16, 17, 31, 33, 64, 65, 127, 129, 200, 1000, 4097});
}

TEST_CASE("block_sparse on the GPU: small blocks, several chunks of long rows") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  Case c;
  c.tokens = 16 * 5201 + 5;
  c.heads = 2;
  c.head_dim = 64;
  c.edge = 16;
  for (std::int64_t budget : {20, 520}) {
    c.budget = budget;
    c.ties = budget == 20;
    check(gpu, c, seed + static_cast<std::uint64_t>(budget));
  }
}

TEST_CASE("block_sparse on the GPU: long rows, several passes over the blocks") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  Case c;
  c.tokens = 64 * 601 + 17;
  c.heads = 2;
  c.head_dim = 128;
  for (std::int64_t budget : {5, 60, 300}) {
    c.budget = budget;
    for (bool ties : {false, true}) {
      c.ties = ties;
      check(gpu, c, seed + static_cast<std::uint64_t>(budget));
    }
  }
}
