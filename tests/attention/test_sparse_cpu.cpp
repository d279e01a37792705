#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>
#include <numeric>
#include <set>
#include <string>

#include "attention/sparse.hpp"
#include "tests/attention/paged_keys.hpp"
#include "tests/reference/compare.hpp"
#include "tests/reference/naive_sparse_attention.hpp"

using namespace tessera;
using namespace tessera::testing;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Case {
  std::string name;
  std::int64_t length = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  DType dtype = DType::kF32;
  bool shared = false;
  int rows_per_block = 64;
  double pages = 0.2;                        // probability that a row sees a page
  double columns = 0.05;                     // probability that a head keeps a column
  std::int64_t missing = 0;                  // every missing-th block of a head is not held; 0: all are
  float spread = 1.0f;                       // of queries: large values make sharp distributions
  std::vector<std::int32_t> positions = {};  // empty: all
};

// A key seen by choice: which pages of a query block, which columns of a list; from this both the Selection
// and the oracle's answer are made.
struct Choice {
  std::vector<std::vector<std::set<std::int64_t>>> pages;  // (lists, query blocks): page numbers
  std::vector<std::set<std::int64_t>> columns;             // (lists)
};

Choice random_choice(const Case& c, std::uint64_t seed) {
  CounterRng rng(seed, 5);
  Choice choice;
  const int lists = c.shared ? c.kv_heads : c.heads;
  const std::int64_t rows = ceil_div(c.length, c.rows_per_block);
  choice.pages.resize(lists);
  choice.columns.resize(lists);
  for (int list = 0; list < lists; ++list) {
    choice.pages[list].resize(rows);
    for (std::int64_t row = 0; row < rows; ++row) {
      // Past the diagonal too: the mask must cut what reaches over it.
      const std::int64_t end = std::min((row + 2) * c.rows_per_block, c.length);
      for (std::int64_t page = 0; page * kPageTokens < end; ++page) {
        if (rng.uniform() < c.pages) choice.pages[list][row].insert(page);
      }
    }
    for (std::int64_t j = 0; j < c.length; ++j) {
      if (rng.uniform() < c.columns) choice.columns[list].insert(j);
    }
  }
  return choice;
}

PrefillSelection selection_of(const Case& c, const Choice& choice) {
  PrefillSelection s;
  s.length = c.length;
  s.heads = static_cast<int>(choice.pages.size());
  s.shared_by_group = c.shared;
  s.rows_per_block = c.rows_per_block;
  s.row_begin.push_back(0);
  s.column_begin.push_back(0);
  for (std::size_t list = 0; list < choice.pages.size(); ++list) {
    for (const auto& pages : choice.pages[list]) {
      const std::size_t row_begin = s.entries.size();
      for (std::int64_t page : pages) {
        const std::int64_t block = page / 4;
        if (s.entries.size() == row_begin || s.entries.back().block() != block) {
          s.entries.push_back(BlockEntry::make(block, 0));
        }
        s.entries.back().bits |= 1u << page % 4;
      }
      s.row_begin.push_back(static_cast<std::int64_t>(s.entries.size()));
    }
    s.columns.insert(s.columns.end(), choice.columns[list].begin(), choice.columns[list].end());
    s.column_begin.push_back(static_cast<std::int64_t>(s.columns.size()));
  }
  return s;
}

struct Result {
  std::vector<float> out;
  std::vector<float> lse;
};

void check_against(const Result& got, const reference::AttentionResult& want, double tolerance = 1e-5) {
  CHECK(reference::relative_error(got.out, want.out) <= tolerance);
  REQUIRE(got.lse.size() == want.lse.size());
  std::vector<float> finite_got;
  std::vector<double> finite_want;
  for (std::size_t i = 0; i < want.lse.size(); ++i) {
    if (std::isinf(want.lse[i])) {
      CHECK(got.lse[i] == -std::numeric_limits<float>::infinity());
      continue;
    }
    finite_got.push_back(got.lse[i]);
    finite_want.push_back(want.lse[i]);
  }
  CHECK(reference::relative_error(finite_got, finite_want) <= tolerance);
}

// Q, K and V of a case. Keys that `sees` hides from every row are NaN.
class Problem {
 public:
  Problem(const Case& c, reference::Sees sees)
      : case_(c),
        sees_(std::move(sees)),
        q_(random_floats(c.positions.size() * c.heads * c.head_dim, 1, c.spread)),
        k_(random_floats(static_cast<std::size_t>(c.length) * c.kv_heads * c.head_dim, 2)),
        v_(random_floats(static_cast<std::size_t>(c.length) * c.kv_heads * c.head_dim, 3)),
        hidden_(poison_unseen()),
        keys_(k_, v_, c.length, c.kv_heads, c.head_dim, c.dtype,
              [this](int head, std::int64_t block) { return held(head, block); }) {}

  reference::AttentionResult oracle() const {
    reference::AttentionProblem p;
    p.heads = static_cast<std::size_t>(case_.heads);
    p.kv_heads = static_cast<std::size_t>(case_.kv_heads);
    p.head_dim = static_cast<std::size_t>(case_.head_dim);
    p.q = q_;
    p.positions = case_.positions;
    p.k = k_;
    p.v = v_;
    p.length = static_cast<std::size_t>(case_.length);
    p.scale = scale();
    return reference::masked_attention(p, [this](std::size_t row, std::size_t head, std::size_t position) {
      return visible(row, head, position);
    });
  }

  PrefillAttentionParams params(Result& result) const {
    poison(result);
    PrefillAttentionParams p;
    p.tokens = static_cast<std::int64_t>(case_.positions.size());
    p.heads = case_.heads;
    p.q = q_.data();
    p.positions = case_.positions.data();
    p.kv = keys_.view;
    p.scale = scale();
    p.out = result.out.data();
    p.lse = result.lse.data();
    return p;
  }

  Result prefill(const PrefillSelection& selection) const {
    Result result;
    sparse_prefill_attention(params(result), selection);
    return result;
  }

  Result dense_prefill() const {
    Result result;
    prefill_attention(params(result));
    return result;
  }

  // All rows as sequences of one call that read the same cache.
  Result decode(const std::vector<HeadLists>& lists) const {
    Result result;
    const std::vector<KvView> views(case_.positions.size(), keys_.view);
    sparse_decode_attention(decode_params(result, views), lists.data());
    return result;
  }

  Result dense_decode() const {
    Result result;
    const std::vector<KvView> views(case_.positions.size(), keys_.view);
    decode_attention(decode_params(result, views));
    return result;
  }

  std::size_t hidden() const { return hidden_; }

 private:
  DecodeAttentionParams decode_params(Result& result, const std::vector<KvView>& views) const {
    poison(result);
    DecodeAttentionParams p;
    p.sequences = static_cast<int>(case_.positions.size());
    p.heads = case_.heads;
    p.q = q_.data();
    p.positions = case_.positions.data();
    p.kv = views.data();
    p.scale = scale();
    p.out = result.out.data();
    p.lse = result.lse.data();
    return p;
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(case_.head_dim)); }
  bool held(int head, std::int64_t block) const {
    return case_.missing == 0 || (block + head) % case_.missing != case_.missing - 1;
  }
  bool visible(std::size_t row, std::size_t head, std::size_t position) const {
    const int kv_head = static_cast<int>(head) / (case_.heads / case_.kv_heads);
    const auto at = static_cast<std::int64_t>(position);
    return at <= case_.positions[row] && held(kv_head, at / kBlockTokens) && sees_(row, head, position);
  }
  void poison(Result& result) const {
    result.out.assign(q_.size(), kNan);
    result.lse.assign(case_.positions.size() * case_.heads, kNan);
  }
  std::size_t poison_unseen() {
    const std::size_t group = static_cast<std::size_t>(case_.heads / case_.kv_heads);
    const std::size_t head_dim = static_cast<std::size_t>(case_.head_dim);
    std::size_t hidden = 0;
    for (std::size_t j = 0; j < static_cast<std::size_t>(case_.length); ++j) {
      for (std::size_t kv_head = 0; kv_head < static_cast<std::size_t>(case_.kv_heads); ++kv_head) {
        bool seen = false;
        for (std::size_t i = 0; i < case_.positions.size() * group && !seen; ++i) {
          seen = visible(i / group, kv_head * group + i % group, j);
        }
        if (seen) continue;
        ++hidden;
        const std::size_t start = (j * static_cast<std::size_t>(case_.kv_heads) + kv_head) * head_dim;
        std::fill_n(k_.begin() + static_cast<std::ptrdiff_t>(start), head_dim, kNan);
        std::fill_n(v_.begin() + static_cast<std::ptrdiff_t>(start), head_dim, kNan);
      }
    }
    return hidden;
  }

  Case case_;
  reference::Sees sees_;
  std::vector<float> q_, k_, v_;
  std::size_t hidden_;
  PagedKeys keys_;
};

std::vector<std::int32_t> range(std::int32_t begin, std::int32_t end) {
  std::vector<std::int32_t> values(static_cast<std::size_t>(end - begin));
  std::iota(values.begin(), values.end(), begin);
  return values;
}

Problem prefill_problem(Case& c, const Choice& choice) {
  if (c.positions.empty()) c.positions = range(0, static_cast<std::int32_t>(c.length));
  return Problem(c, [c, choice](std::size_t row, std::size_t head, std::size_t position) {
    const std::size_t list = c.shared ? head / static_cast<std::size_t>(c.heads / c.kv_heads) : head;
    const std::size_t block = static_cast<std::size_t>(c.positions[row] / c.rows_per_block);
    const auto at = static_cast<std::int64_t>(position);
    return choice.pages[list][block].contains(at / kPageTokens) || choice.columns[list].contains(at);
  });
}

std::vector<Case> prefill_cases() {
  const DType f32 = DType::kF32;
  const DType bf16 = DType::kBF16;
  return {
      {"one token", 1, 1, 1, 64, f32, false, 64, 1.0, 0.0},
      {"pages and columns", 333, 4, 2, 64, f32},
      {"pages alone", 333, 4, 2, 64, f32, false, 64, 0.3, 0.0},
      {"columns alone", 400, 4, 2, 64, f32, false, 64, 0.0, 0.2},
      {"many columns, most inside pages", 400, 2, 2, 64, f32, false, 64, 0.7, 0.9},
      {"single pages far apart", 700, 2, 1, 32, f32, false, 64, 0.03, 0.01},
      {"nothing selected", 150, 2, 1, 64, f32, false, 64, 0.0, 0.0},
      {"shared by group", 300, 8, 2, 64, f32, true},
      {"shared, 16 rows", 300, 8, 2, 64, f32, true, 16},
      {"shared, 32 rows, 3 heads a group", 211, 6, 2, 64, f32, true, 32},
      {"shared, 16 rows, 7 heads a group", 211, 7, 1, 64, f32, true, 16},
      {"shared, 5 heads a group, bf16", 190, 5, 1, 80, bf16, true},
      {"8 heads a group", 130, 8, 1, 128, bf16, true},
      {"16 rows", 211, 4, 2, 64, f32, false, 16},
      {"32 rows, bf16", 211, 4, 2, 64, bf16, false, 32},
      {"D = 2", 90, 3, 3, 2, f32, false, 64},
      {"D = 6, f16", 90, 3, 1, 6, DType::kF16, true, 16},
      {"D = 32", 200, 4, 1, 32, f32, true},
      {"D = 80", 200, 2, 1, 80, f32, false, 32},
      {"D = 80, f16", 130, 2, 1, 80, DType::kF16},
      {"D = 128", 200, 2, 1, 128, f32},
      {"D = 128, bf16", 200, 6, 2, 128, bf16, true, 32},
      {"D = 256", 130, 4, 2, 256, f32},
      {"D = 256, bf16, 16 rows", 130, 4, 2, 256, bf16, false, 16},
      {"blocks missing", 400, 4, 2, 64, f32, false, 64, 0.3, 0.1, 3},
      {"blocks missing, shared", 400, 4, 2, 64, bf16, true, 64, 0.3, 0.1, 2},
      {"nothing held", 100, 4, 2, 64, f32, false, 64, 0.5, 0.5, 1},
      {"sharp", 300, 4, 2, 64, f32, false, 64, 0.3, 0.1, 0, 60.0f},
      {"a chunk in the middle", 400, 4, 2, 64, f32, false, 64, 0.3, 0.1, 0, 1.0f, range(130, 215)},
      {"scattered rows",
       400,
       4,
       2,
       64,
       f32,
       true,
       32,
       0.3,
       0.1,
       0,
       1.0f,
       {3, 17, 31, 32, 95, 96, 200, 331, 399}},
  };
}

}  // namespace

TEST_CASE("sparse prefill equals the masked fp64 oracle; keys that nobody sees are never touched") {
  std::size_t hidden = 0;
  for (Case c : prefill_cases()) {
    for (std::uint64_t seed = 1; seed <= 3; ++seed) {
      INFO(c.name << ", seed " << seed);
      const Choice choice = random_choice(c, seed);
      const Problem problem = prefill_problem(c, choice);
      check_against(problem.prefill(selection_of(c, choice)), problem.oracle());
      hidden += problem.hidden();
    }
  }
  CHECK(hidden > 1000);  // or the poison proves nothing
}

TEST_CASE("a full selection gives the dense output") {
  for (const int rows : {16, 32, 64}) {
    for (const bool shared : {false, true}) {
      Case c{"full", 333, 6, 2, 64, DType::kBF16, shared, rows, 1.0, 0.3};
      INFO("rows " << rows << ", shared " << shared);
      const Choice choice = random_choice(c, 1);
      const Problem problem = prefill_problem(c, choice);
      const Result dense = problem.dense_prefill();
      const Result sparse = problem.prefill(selection_of(c, choice));
      CHECK(reference::relative_error(sparse.out, std::vector<double>(dense.out.begin(), dense.out.end())) <=
            1e-5);
      CHECK(reference::relative_error(sparse.lse, std::vector<double>(dense.lse.begin(), dense.lse.end())) <=
            1e-5);
    }
  }
}

TEST_CASE("sparse prefill gives the same bits on any number of threads") {
  Case c{"whole", 500, 8, 2, 64, DType::kBF16};
  const Choice choice = random_choice(c, 4);
  const PrefillSelection selection = selection_of(c, choice);
  const Problem problem = prefill_problem(c, choice);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const Result one = problem.prefill(selection);
  omp_set_num_threads(3);
  const Result three = problem.prefill(selection);
  omp_set_num_threads(threads);
  CHECK(one.out == three.out);
  CHECK(one.lse == three.lse);
}

namespace {

// Pages of each sequence's lists; a list may name pages past the row's position, which it must not read.
std::vector<HeadLists> random_lists(const Case& c, std::uint64_t seed) {
  CounterRng rng(seed, 6);
  std::vector<HeadLists> all(c.positions.size());
  for (HeadLists& lists : all) {
    lists.heads = c.shared ? c.kv_heads : c.heads;
    lists.begin.push_back(0);
    for (int head = 0; head < lists.heads; ++head) {
      for (std::int64_t page = 0; page < ceil_div(c.length, kPageTokens); ++page) {
        if (rng.uniform() < c.pages) lists.values.push_back(static_cast<std::int32_t>(page));
      }
      lists.begin.push_back(static_cast<std::int64_t>(lists.values.size()));
    }
  }
  return all;
}

Problem decode_problem(const Case& c, const std::vector<HeadLists>& lists) {
  return Problem(c, [c, lists](std::size_t row, std::size_t head, std::size_t position) {
    const std::size_t list = c.shared ? head / static_cast<std::size_t>(c.heads / c.kv_heads) : head;
    const auto begin = static_cast<std::size_t>(lists[row].begin[list]);
    const auto end = static_cast<std::size_t>(lists[row].begin[list + 1]);
    for (std::size_t i = begin; i < end; ++i) {
      if (lists[row].values[i] == static_cast<std::int32_t>(position / kPageTokens)) return true;
    }
    return false;
  });
}

std::vector<Case> decode_cases() {
  const DType f32 = DType::kF32;
  const DType bf16 = DType::kBF16;
  const auto decode = [](std::string name, std::int64_t length, int heads, int kv_heads, int head_dim,
                         DType dtype, bool shared, double pages, std::vector<std::int32_t> positions,
                         std::int64_t missing = 0, float spread = 1.0f) {
    Case c{std::move(name), length, heads, kv_heads, head_dim, dtype, shared};
    c.pages = pages;
    c.positions = std::move(positions);
    c.missing = missing;
    c.spread = spread;
    return c;
  };
  return {
      decode("one key", 1, 1, 1, 64, f32, true, 1.0, {0}),
      decode("lists of KV heads", 1000, 8, 2, 64, f32, true, 0.3, {999}),
      decode("lists of query heads", 1000, 8, 2, 64, f32, false, 0.3, {999}),
      decode("several sequences", 1000, 6, 2, 64, bf16, true, 0.3, {999, 998, 500, 15, 16, 0}),
      decode("a position in the middle of a page", 333, 4, 2, 64, f32, true, 0.5, {330, 200, 7}),
      decode("more pages than a split", 3000, 4, 2, 64, bf16, true, 0.9, {2999, 1200}),
      decode("no page", 200, 4, 2, 64, f32, true, 0.0, {199}),
      decode("blocks missing", 1000, 4, 2, 64, f32, false, 0.5, {999, 640}, 3),
      decode("nothing held", 300, 4, 2, 64, f32, true, 0.5, {299}, 1),
      decode("seven heads a group", 400, 7, 1, 32, bf16, true, 0.3, {399}),
      decode("eight heads a group", 400, 8, 1, 128, bf16, true, 0.3, {399}),
      decode("five heads a group", 400, 5, 1, 80, f32, true, 0.3, {399}),
      decode("D = 256", 400, 4, 2, 256, f32, true, 0.3, {399, 100}),
      decode("D = 6, f16", 400, 3, 1, 6, DType::kF16, true, 0.3, {399}),
      decode("D = 34", 400, 2, 2, 34, f32, false, 0.3, {399}),
      decode("past the end of the keys", 100, 4, 2, 64, f32, true, 0.6, {120}),
      decode("sharp", 1000, 4, 2, 64, f32, true, 0.3, {999}, 0, 60.0f),
  };
}

}  // namespace

TEST_CASE("sparse decode equals the masked fp64 oracle; pages that nobody lists are never touched") {
  std::size_t hidden = 0;
  for (const Case& c : decode_cases()) {
    for (std::uint64_t seed = 1; seed <= 3; ++seed) {
      INFO(c.name << ", seed " << seed);
      const std::vector<HeadLists> lists = random_lists(c, seed);
      const Problem problem = decode_problem(c, lists);
      check_against(problem.decode(lists), problem.oracle());
      hidden += problem.hidden();
    }
  }
  CHECK(hidden > 1000);
}

TEST_CASE("all pages give the dense decode output") {
  for (const bool shared : {true, false}) {
    Case c{"full", 2500, 8, 2, 64, DType::kBF16, shared, 64, 1.0};
    c.positions = {2499, 1777, 30};
    const std::vector<HeadLists> lists = random_lists(c, 1);
    const Problem problem = decode_problem(c, lists);
    const Result dense = problem.dense_decode();
    const Result sparse = problem.decode(lists);
    CHECK(reference::relative_error(sparse.out, std::vector<double>(dense.out.begin(), dense.out.end())) <=
          1e-5);
    CHECK(reference::relative_error(sparse.lse, std::vector<double>(dense.lse.begin(), dense.lse.end())) <=
          1e-5);
  }
}

TEST_CASE("sparse decode gives the same bits on any number of threads") {
  Case c{"long", 4000, 8, 2, 64, DType::kBF16, true, 64, 0.6};
  c.positions = {3999, 3000};
  const std::vector<HeadLists> lists = random_lists(c, 2);
  const Problem problem = decode_problem(c, lists);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const Result one = problem.decode(lists);
  omp_set_num_threads(3);
  const Result three = problem.decode(lists);
  omp_set_num_threads(threads);
  CHECK(one.out == three.out);
  CHECK(one.lse == three.lse);
}
