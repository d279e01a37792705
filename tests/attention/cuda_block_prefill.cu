// Sparse prefill for query blocks of 16 and 32 rows against a naive fp64 answer: what cuda_sparse_prefill.cu
// does for 64 and 128, and lists whose entries name one page each.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include "runtime/core/error.hpp"
#include "tests/attention/cuda_list_problem.hpp"

using namespace tessera;
using namespace cuda_test;

namespace {

template <typename Body>
void for_small_blocks(const Body& body) {
  for_kernels({64, 128}, {16, 32}, body);
}

}  // namespace

TEST_CASE("small query blocks on the GPU: random lists, sequences of any length") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  const int groups[] = {1, 4, 7, 8};
  const Masks masks[] = {Masks::kWhole, Masks::kMixed, Masks::kSingle};
  int turn = 0;
  for_small_blocks([&](ListCase c, const std::string& name) {
    for (std::int64_t length : {1, 15, 16, 17, 33, 64, 65, 129, 193, 257, 1000}) {
      set_group(c, groups[turn % 4], 1 + turn / 4 % 2, turn % 3 == 0);
      c.masks = masks[turn % 3];
      c.density = turn % 5 == 0 ? 1.0 : 0.4;
      c.by_page = turn % 2 == 0;
      ++turn;
      c.tokens = c.length = length;
      c.sampled_rows = length > 300 ? 150 : 0;
      ListProblem(gpu, c, seed).check(fmt::format("{} S={} H={} K={}", name, length, c.heads, c.kv_heads));
    }
    for (bool shared : {false, true}) {
      set_group(c, 4, 2, shared);
      c.masks = Masks::kMixed;
      c.tokens = c.length = 5001;  // lists of more than 32 blocks
      c.density = 0.7;
      c.sampled_rows = 60;
      ListProblem(gpu, c, seed).check(name + " S=5001 long lists");
      c.density = 0.02;
      ListProblem(gpu, c, seed).check(name + " S=5001 short lists");
    }
  });
}

TEST_CASE("small query blocks on the GPU: some rows of a sequence, from any position on") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  for_small_blocks([&](ListCase c, const std::string& name) {
    for (bool shared : {false, true}) {
      set_group(c, 7, 1, shared);
      c.with_lse = true;
      c.shard = 1 << 30;
      c.q_padding = 0;
      c.tokens = 70;
      c.length = 1000;
      c.starts = {930};
      ListProblem(gpu, c, seed).check(name + " last rows");
      c.starts = {37};
      c.tokens = 200;
      ListProblem(gpu, c, seed).check(name + " from 37");
      c.starts = {960};  // some positions have no key of their own
      c.tokens = 100;
      ListProblem(gpu, c, seed).check(name + " beyond the keys");
      c.length = 0;
      ListProblem(gpu, c, seed).check(name + " no keys at all");
      c.length = 640;
      c.shard = 128;
      c.tokens = 250;
      c.starts = {128, 512};
      c.q_padding = 128;
      ListProblem(gpu, c, seed).check(name + " two shards, strided Q");
      c.starts = {64, 401};
      ListProblem(gpu, c, seed).check(name + " two shards at odd places");
      c.with_lse = false;
      ListProblem(gpu, c, seed).check(name + " two shards, no lse");
    }
  });
}

TEST_CASE("small query blocks on the GPU: holes, and guests with poison in the pages nobody asked for") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  for_small_blocks([&](ListCase c, const std::string& name) {
    set_group(c, 4, 2);
    c.tokens = c.length = 1001;
    c.sampled_rows = 200;
    c.held = [](int head, std::int64_t block) { return (block * 7 + head * 3) % 5 < 2; };
    ListProblem(gpu, c, seed).check(name + " holes");
    c.held = [](int, std::int64_t) { return false; };
    ListProblem(gpu, c, seed).check(name + " nothing held");
    c.held = [](int, std::int64_t) { return true; };
    c.guests = true;
    for (Masks masks : {Masks::kMixed, Masks::kSingle}) {
      c.masks = masks;
      c.density = 0.01;
      ListProblem(gpu, c, seed).check(name + " guests");
    }
    c.held = [](int head, std::int64_t block) { return (block + head) % 3 != 0; };
    ListProblem(gpu, c, seed).check(name + " guests and holes");
  });
}

TEST_CASE("small query blocks on the GPU: scores that spread, and maxima that keep growing") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  for_small_blocks([&](ListCase c, const std::string& name) {
    set_group(c, 2, 1);
    c.tokens = c.length = 1500;
    c.sampled_rows = 150;
    c.growing = true;
    for (double spread : {0.01, 1.0, 10.0}) {
      c.score_spread = spread;
      ListProblem(gpu, c, seed).check(fmt::format("{} spread {}", name, spread));
    }
  });
}

TEST_CASE("small query blocks on the GPU: the same bits every time") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  for_small_blocks([&](ListCase c, const std::string& name) {
    CAPTURE(name);
    set_group(c, 8, 2, c.rows_per_block == 32);
    c.tokens = c.length = 2500;
    ListProblem problem(gpu, c, seed);
    const std::vector<std::uint16_t> first = problem.answer();
    for (int i = 0; i < 10; ++i) CHECK(problem.answer() == first);
  });
}

TEST_CASE("small query blocks on the GPU: heads of 256 channels are refused by name") {
  Gpu gpu;
  ListCase c;
  c.head_dim = 256;
  c.rows_per_block = 16;
  c.tokens = c.length = 40;
  ListProblem problem(gpu, c, 1);
  CHECK_THROWS_AS(problem.answer(), ResourceError);
}
