// Dense prefill attention on the GPU against a naive fp64 answer: irregular sizes, shards, holes, windows,
// every head dimension and both types; what was never written is NaN.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/attention/cuda_prefill_problem.hpp"

using namespace tessera;
using cuda_test::Gpu;
using cuda_test::PrefillCase;
using cuda_test::PrefillProblem;

namespace {

constexpr int kHeadDims[] = {64, 128, 256};
constexpr DType kTypes[] = {DType::kBF16, DType::kF16};

template <typename Body>
void for_every_kernel(const Body& body) {
  for (int head_dim : kHeadDims) {
    for (DType dtype : kTypes) {
      PrefillCase c;
      c.head_dim = head_dim;
      c.dtype = dtype;
      for (int tile_keys : {0, 192}) {
        if (tile_keys == 192 && head_dim != 128) continue;
        c.tile_keys = tile_keys;
        body(c, fmt::format("D={} {}{}", head_dim, name_of(dtype), tile_keys == 192 ? " 192 keys" : ""));
      }
    }
  }
}

void set_group(PrefillCase& c, int group, int kv_heads) {
  c.heads = group * kv_heads;
  c.kv_heads = kv_heads;
}

}  // namespace

TEST_CASE("prefill on the GPU: causal, whole sequences of any length") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  const int groups[] = {1, 4, 7, 8};
  int turn = 0;
  for_every_kernel([&](PrefillCase c, const std::string& name) {
    for (std::int64_t length : {1, 2, 63, 64, 65, 127, 128, 129, 191, 193, 257, 1000}) {
      set_group(c, groups[turn % 4], 1 + turn / 4 % 2);
      ++turn;
      c.tokens = c.length = length;
      c.sampled_rows = length > 300 ? 150 : 0;
      PrefillProblem(gpu, c, seed).check(fmt::format("{} S={} H={} K={}", name, length, c.heads, c.kv_heads));
    }
    set_group(c, 4, 2);
    c.tokens = c.length = 4097;
    c.sampled_rows = 100;
    PrefillProblem(gpu, c, seed).check(fmt::format("{} S=4097 H=8 K=2", name));
  });
}

TEST_CASE("prefill on the GPU: some rows of a sequence, from any position on") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  for_every_kernel([&](PrefillCase c, const std::string& name) {
    set_group(c, 7, 1);
    c.tokens = 70;
    c.length = 1000;
    c.starts = {930};
    PrefillProblem(gpu, c, seed).check(name + " last rows");
    c.starts = {37};
    c.tokens = 200;
    PrefillProblem(gpu, c, seed).check(name + " from 37");
    c.starts = {960};  // some positions have no key of their own
    c.tokens = 100;
    PrefillProblem(gpu, c, seed).check(name + " beyond the keys");
    c.length = 0;
    PrefillProblem(gpu, c, seed).check(name + " no keys at all");
    // A rank of two of a balanced partition, chunks r and 2·sp − 1 − r; with three blocks a tile they meet
    // inside of one.
    c.length = 640;
    c.shard = 128;
    c.tokens = 250;
    c.starts = {128, 512};
    c.q_padding = 128;
    PrefillProblem(gpu, c, seed).check(name + " two shards, strided Q");
    c.with_lse = false;
    PrefillProblem(gpu, c, seed).check(name + " two shards, no lse");
  });
}

TEST_CASE("prefill on the GPU: blocks that the table does not hold") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  for_every_kernel([&](PrefillCase c, const std::string& name) {
    set_group(c, 4, 2);
    c.tokens = c.length = 900;
    c.sampled_rows = 200;
    c.held = [](int head, std::int64_t block) { return (block * 7 + head * 3) % 5 < 2; };
    PrefillProblem(gpu, c, seed).check(name + " holes");
    c.held = [](int head, std::int64_t block) { return head == 1 && block == 3; };
    PrefillProblem(gpu, c, seed).check(name + " one block of one head");
    c.held = [](int, std::int64_t) { return false; };
    PrefillProblem(gpu, c, seed).check(name + " nothing held");
    c.tokens = 128;
    c.length = 8000;  // more than 32 entries of the table without a block
    c.starts = {7872};
    c.held = [](int, std::int64_t block) { return block < 5 || block == 90 || block == 124; };
    PrefillProblem(gpu, c, seed).check(name + " long holes");
  });
}

TEST_CASE("prefill on the GPU: window") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  for_every_kernel([&](PrefillCase c, const std::string& name) {
    set_group(c, 2, 2);
    c.tokens = c.length = 1100;
    c.sampled_rows = 250;
    for (std::int32_t window : {1, 63, 64, 100, 512, 1099, 5000}) {
      c.window = window;
      PrefillProblem(gpu, c, seed).check(fmt::format("{} window {}", name, window));
    }
    c.window = 100;
    c.starts = {2000};  // no key left in any window
    PrefillProblem(gpu, c, seed).check(name + " window past the keys");
    c.starts = {300};
    c.held = [](int, std::int64_t block) { return block % 3 != 1; };
    PrefillProblem(gpu, c, seed).check(name + " window and holes");
  });
}

TEST_CASE("prefill on the GPU: scores that spread, and maxima that keep growing") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  for_every_kernel([&](PrefillCase c, const std::string& name) {
    set_group(c, 2, 1);
    c.tokens = c.length = 1500;
    c.sampled_rows = 150;
    c.growing = true;
    for (double spread : {0.01, 1.0, 10.0}) {
      c.score_spread = spread;
      PrefillProblem(gpu, c, seed).check(fmt::format("{} spread {}", name, spread));
    }
  });
}

TEST_CASE("prefill on the GPU: the same bits every time") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  for_every_kernel([&](PrefillCase c, const std::string& name) {
    CAPTURE(name);
    set_group(c, 8, 2);
    c.tokens = c.length = 2500;
    PrefillProblem problem(gpu, c, seed);
    const std::vector<std::uint16_t> first = problem.answer();
    for (int i = 0; i < 10; ++i) CHECK(problem.answer() == first);
  });
}

TEST_CASE("prefill on the GPU by mma.sync, for older cards") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  const cuda_test::PrefillRun run = cuda::prefill_attention_mma;
  for_every_kernel([&](PrefillCase c, std::string name) {
    name += " mma";
    set_group(c, 7, 2);
    for (std::int64_t length : {1, 63, 64, 65, 130, 1000}) {
      c.tokens = c.length = length;
      c.sampled_rows = 100;
      PrefillProblem(gpu, c, seed).check(fmt::format("{} S={}", name, length), run);
    }
    c.starts = {930};
    c.tokens = 150;
    PrefillProblem(gpu, c, seed).check(name + " beyond the keys", run);
    c.length = 0;
    PrefillProblem(gpu, c, seed).check(name + " no keys", run);
    c.length = 640;
    c.shard = 128;
    c.tokens = 250;
    c.starts = {128, 512};
    c.q_padding = 64;
    c.held = [](int head, std::int64_t block) { return (block * 7 + head * 3) % 5 < 2; };
    PrefillProblem(gpu, c, seed).check(name + " shards and holes", run);
    c.window = 100;
    PrefillProblem(gpu, c, seed).check(name + " shards, holes, window", run);
  });
}
