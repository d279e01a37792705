#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>
#include <string>

#include "attention/dense.hpp"
#include "tests/attention/paged_keys.hpp"
#include "tests/reference/compare.hpp"

using namespace tessera;
using namespace tessera::testing;

namespace {

struct Case {
  std::string name;
  std::vector<std::int32_t> positions;
  std::int64_t length = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  DType dtype = DType::kF32;
  std::int32_t window = 0;
  std::int64_t missing = 0;  // every missing-th block of a head is not held; 0: all are
  float spread = 1.0f;       // of queries: large values make sharp distributions
};

std::vector<std::int32_t> range(std::int32_t begin, std::int32_t end) {
  std::vector<std::int32_t> values;
  for (std::int32_t i = begin; i < end; ++i) values.push_back(i);
  return values;
}

std::vector<std::int32_t> join(std::vector<std::int32_t> a, const std::vector<std::int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct Result {
  std::vector<float> out;
  std::vector<float> lse;
};

class Problem {
 public:
  explicit Problem(const Case& c)
      : case_(c),
        q_(random_floats(c.positions.size() * c.heads * c.head_dim, 1, c.spread)),
        k_(random_floats(static_cast<std::size_t>(c.length) * c.kv_heads * c.head_dim, 2)),
        v_(random_floats(static_cast<std::size_t>(c.length) * c.kv_heads * c.head_dim, 3)),
        scale_(1.0f / std::sqrt(static_cast<float>(c.head_dim))),
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
    p.scale = scale_;
    p.window = case_.window;
    p.held = [this](std::size_t head, std::size_t position) {
      return held(static_cast<int>(head), static_cast<std::int64_t>(position) / kBlockTokens);
    };
    return reference::attention(p);
  }

  Result prefill() const {
    Result result = poisoned();
    PrefillAttentionParams p;
    p.tokens = static_cast<std::int64_t>(case_.positions.size());
    p.heads = case_.heads;
    p.q = q_.data();
    p.positions = case_.positions.data();
    p.kv = keys_.view;
    p.scale = scale_;
    p.window = case_.window;
    p.out = result.out.data();
    p.lse = result.lse.data();
    prefill_attention(p);
    return result;
  }

  // All rows as sequences of one decode call that read the same cache.
  Result decode() const {
    Result result = poisoned();
    const std::vector<KvView> views(case_.positions.size(), keys_.view);
    DecodeAttentionParams p;
    p.sequences = static_cast<int>(case_.positions.size());
    p.heads = case_.heads;
    p.q = q_.data();
    p.positions = case_.positions.data();
    p.kv = views.data();
    p.scale = scale_;
    p.window = case_.window;
    p.out = result.out.data();
    p.lse = result.lse.data();
    decode_attention(p);
    return result;
  }

 private:
  bool held(int head, std::int64_t block) const {
    return case_.missing == 0 || (block + head) % case_.missing != case_.missing - 1;
  }
  Result poisoned() const {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    return {std::vector<float>(q_.size(), nan),
            std::vector<float>(case_.positions.size() * case_.heads, nan)};
  }

  Case case_;
  std::vector<float> q_, k_, v_;
  float scale_;
  PagedKeys keys_;
};

void check_against(const Result& got, const reference::AttentionResult& want) {
  CHECK(reference::relative_error(got.out, want.out) <= 1e-5);
  REQUIRE(got.lse.size() == want.lse.size());
  std::vector<float> finite_got;
  std::vector<double> finite_want;
  for (std::size_t i = 0; i < want.lse.size(); ++i) {
    if (std::isinf(want.lse[i])) {
      CHECK(std::isinf(got.lse[i]));
      CHECK(got.lse[i] < 0);
    } else {
      finite_got.push_back(got.lse[i]);
      finite_want.push_back(want.lse[i]);
    }
  }
  CHECK(reference::relative_error(finite_got, finite_want) <= 1e-5);
}

std::vector<Case> cases() {
  const DType f32 = DType::kF32;
  return {
      {"one key", {0}, 1, 1, 1, 64, f32},
      {"one row of a long cache", {299}, 300, 4, 2, 64, f32},
      {"whole prompt, length not a multiple of 64", range(0, 333), 333, 6, 2, 64, f32},
      {"one row past a block", range(0, 65), 65, 2, 2, 32, f32},
      {"seven heads a group", range(0, 150), 150, 14, 2, 64, f32},
      {"seventeen heads a group", range(0, 70), 70, 17, 1, 32, f32},
      {"bf16", range(0, 200), 200, 4, 1, 64, DType::kBF16},
      {"f16", range(0, 200), 200, 4, 1, 64, DType::kF16},
      {"D = 2", range(0, 90), 90, 3, 3, 2, f32},
      {"D = 6, bf16", range(0, 90), 90, 3, 1, 6, DType::kBF16},
      {"D = 34", range(0, 130), 130, 2, 1, 34, f32},
      {"D = 80, f16", range(0, 130), 130, 2, 1, 80, DType::kF16},
      {"D = 128", range(0, 130), 130, 8, 1, 128, f32},
      {"D = 256", range(0, 130), 130, 4, 2, 256, DType::kBF16},
      {"two chunks", join(range(0, 100), range(300, 371)), 371, 4, 2, 64, f32},
      {"a chunk in the middle of held keys", range(128, 200), 400, 4, 2, 64, f32},
      {"blocks missing", range(0, 400), 400, 4, 2, 64, f32, 0, 3},
      {"nothing held", range(0, 70), 70, 4, 2, 64, f32, 0, 1},
      {"first rows see nothing", range(0, 300), 300, 2, 2, 32, f32, 0, 2},
      {"window of 1", range(0, 150), 150, 4, 2, 64, f32, 1},
      {"window smaller than a block", range(0, 300), 300, 4, 2, 64, f32, 17},
      {"window of a block", range(0, 300), 300, 4, 2, 64, f32, 64},
      {"window, bf16, blocks missing", range(0, 500), 500, 6, 3, 64, DType::kBF16, 130, 4},
      {"window longer than the prompt", range(0, 100), 100, 2, 1, 64, f32, 1000},
      {"window over two chunks", join(range(0, 64), range(192, 300)), 300, 4, 2, 64, f32, 100},
      {"queries past the end of the keys", range(90, 140), 100, 2, 1, 64, f32},
      {"windows past the end of the keys", range(90, 240), 100, 2, 1, 64, f32, 30},
      {"sharp", range(0, 200), 200, 4, 2, 64, f32, 0, 0, 60.0f},
      {"no rows", {}, 100, 2, 1, 64, f32},
      {"no keys", range(0, 3), 0, 2, 1, 64, f32},
  };
}

}  // namespace

TEST_CASE("prefill attention equals the fp64 oracle") {
  for (const Case& c : cases()) {
    INFO(c.name);
    const Problem problem(c);
    check_against(problem.prefill(), problem.oracle());
  }
}

TEST_CASE("decode attention equals the fp64 oracle") {
  for (const Case& c : cases()) {
    INFO(c.name);
    const Problem problem(c);
    check_against(problem.decode(), problem.oracle());
  }
}

TEST_CASE("decode joins the splits of a long cache") {
  Case c{"long", {4999, 2047, 1024, 1023}, 5000, 4, 2, 64, DType::kBF16};
  check_against(Problem(c).decode(), Problem(c).oracle());
  c.window = 1500;
  check_against(Problem(c).decode(), Problem(c).oracle());
  c.missing = 2;
  check_against(Problem(c).decode(), Problem(c).oracle());
}

TEST_CASE("attention gives the same bits on any number of threads") {
  const Case whole{"whole", range(0, 700), 700, 14, 2, 64, DType::kBF16, 200};
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const Result prefill_one = Problem(whole).prefill();
  const Result decode_one = Problem(whole).decode();
  omp_set_num_threads(3);
  const Result prefill_three = Problem(whole).prefill();
  const Result decode_three = Problem(whole).decode();
  omp_set_num_threads(threads);
  CHECK(prefill_one.out == prefill_three.out);
  CHECK(prefill_one.lse == prefill_three.lse);
  CHECK(decode_one.out == decode_three.out);
  CHECK(decode_one.lse == decode_three.lse);
}
