// block_sparse on the GPU chooses what it chooses on the CPU, bit for bit: in gaussian problems, and in
// few-bit ones, whose scores tie.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <map>

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
  const PrefillSelection expected = select_prefill(input, settings).selection;

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
  for (int head = 0; head < c.heads; ++head) {
    for (std::int64_t row = 0; row < rows; ++row) {
      REQUIRE(begin[static_cast<std::size_t>(head * rows + row)] <=
              begin[static_cast<std::size_t>(head * rows + row + 1)]);
      const auto want = expected.row(head, cpu_row(row, c, expected.query_blocks()));
      if (row_of(begin, list, head * rows + row) != std::vector<BlockEntry>(want.begin(), want.end())) {
        ++different;
      }
    }
  }
  CHECK(different == 0);
}

}  // namespace

TEST_CASE("block_sparse on the GPU: the CPU's choice") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  const std::int64_t lengths[] = {1, 15, 64, 65, 127, 128, 129, 200, 1000, 4097};
  const std::int64_t budgets[] = {1, 3, 4, 7, 20, 100000};
  for (bool ties : {false, true}) {
    for (std::int64_t edge : {64, 128}) {
      for (int head_dim : {64, 128, 256}) {
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
