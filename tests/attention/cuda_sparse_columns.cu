// Sparse prefill attention on the GPU over lists of pages and columns against a naive fp64 answer: columns
// beside pages and inside them, without pages, past the diagonal, irregular sizes, groups that share, shards
// and odd starts, holes, guests of which only what is seen holds keys. What was never written is NaN.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/attention/cuda_list_problem.hpp"

using namespace tessera;
using namespace cuda_test;

namespace {

ListCase with_columns(ListCase c) {
  c.columns = true;
  return c;
}

}  // namespace

TEST_CASE("sparse prefill with columns: one of every kind") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  for_every_kernel([&](const ListCase& plain, const std::string& name) {
    ListCase c = with_columns(plain);
    set_group(c, 2, 1);
    c.tokens = c.length = 333;
    c.column_density = 0.3;
    c.guests = true;
    ListProblem(gpu, c, seed).check(name);
  });
}

TEST_CASE("sparse prefill with columns: random lists, sequences of any length") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  const int groups[] = {1, 4, 7, 8};
  const Masks masks[] = {Masks::kWhole, Masks::kMixed, Masks::kSingle};
  const double densities[] = {0.02, 0.2, 1.0};
  int turn = 0;
  for_every_kernel([&](const ListCase& plain, const std::string& name) {
    ListCase c = with_columns(plain);
    for (std::int64_t length : {1, 17, 64, 65, 128, 193, 513, 1000}) {
      set_group(c, groups[turn % 4], 1 + turn / 4 % 2, turn % 3 == 0);
      c.masks = masks[turn % 3];
      c.density = turn % 5 == 0 ? 0.9 : 0.2;
      c.column_density = densities[turn / 2 % 3];
      ++turn;
      c.tokens = c.length = length;
      c.sampled_rows = length > 300 ? 100 : 0;
      ListProblem(gpu, c, seed).check(fmt::format("{} S={} H={} K={}", name, length, c.heads, c.kv_heads));
    }
    set_group(c, 4, 2);
    c.masks = Masks::kSingle;
    c.tokens = c.length = 9001;
    c.density = 0.3;
    c.column_density = 0.06;
    c.sampled_rows = 40;
    ListProblem(gpu, c, seed).check(name + " S=9001");
  });
}

TEST_CASE("sparse prefill with columns: none, only, past the diagonal, all in pages that are seen") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  for_every_kernel([&](const ListCase& plain, const std::string& name) {
    ListCase c = with_columns(plain);
    set_group(c, 4, 1);
    c.tokens = c.length = 600;
    c.sampled_rows = 150;
    ListCase none = c;
    none.column_density = 0;
    ListProblem(gpu, none, seed).check(name + " none");
    ListCase nothing = none;
    nothing.density = 0;
    ListProblem(gpu, nothing, seed).check(name + " neither pages nor columns");
    ListCase only = c;
    only.density = 0;
    for (double density : {0.003, 0.3, 1.0}) {
      only.column_density = density;
      ListProblem(gpu, only, seed).check(fmt::format("{} only columns, {}", name, density));
    }
    ListCase beyond = c;
    beyond.column_density = 0.5;
    beyond.columns_from = 590;
    ListProblem(gpu, beyond, seed).check(name + " past the diagonal of most");
    beyond.columns_from = 600;
    ListProblem(gpu, beyond, seed).check(name + " past all keys");
    ListCase covered = c;
    covered.first_block_seen = true;
    covered.columns_to = 64;
    covered.column_density = 1;
    ListProblem(gpu, covered, seed).check(name + " in a seen block");
    covered.columns_to = 66;
    ListProblem(gpu, covered, seed).check(name + " in a seen block but two");
  });
}

TEST_CASE("sparse prefill with columns: some rows of a sequence, from any position on") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  for_every_kernel([&](const ListCase& plain, const std::string& name) {
    ListCase c = with_columns(plain);
    c.column_density = 0.2;
    c.density = 0.1;
    set_group(c, 7, 1);
    c.tokens = 70;
    c.length = 1000;
    c.starts = {930};
    ListProblem(gpu, c, seed).check(name + " last rows");
    c.starts = {37};
    c.tokens = 200;
    ListProblem(gpu, c, seed).check(name + " from 37");
    c.starts = {960};
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
    c.with_lse = false;
    ListProblem(gpu, c, seed).check(name + " two shards at odd places, no lse");
  });
}

TEST_CASE("sparse prefill with columns: holes, and guests with poison around the columns") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  for_every_kernel([&](const ListCase& plain, const std::string& name) {
    ListCase c = with_columns(plain);
    set_group(c, 4, 2);
    c.tokens = c.length = 1001;
    c.sampled_rows = 150;
    c.column_density = 0.1;
    c.held = [](int head, std::int64_t block) { return (block * 7 + head * 3) % 5 < 2; };
    ListProblem(gpu, c, seed).check(name + " holes");
    c.held = [](int, std::int64_t) { return false; };
    ListProblem(gpu, c, seed).check(name + " nothing held");
    c.held = [](int, std::int64_t) { return true; };
    c.guests = true;
    c.density = 0.03;
    c.masks = Masks::kSingle;
    ListProblem(gpu, c, seed).check(name + " guests");
    set_group(c, 4, 2, true);
    c.held = [](int head, std::int64_t block) { return (block + head) % 3 != 0; };
    ListProblem(gpu, c, seed).check(name + " guests and holes, shared lists");
  });
}

TEST_CASE("sparse prefill with columns: scores that spread, and the same bits every time") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  for_every_kernel([&](const ListCase& plain, const std::string& name) {
    CAPTURE(name);
    ListCase c = with_columns(plain);
    set_group(c, 2, 1);
    c.tokens = c.length = 1500;
    c.sampled_rows = 100;
    c.column_density = 0.3;
    c.growing = true;
    for (double spread : {0.01, 10.0}) {
      c.score_spread = spread;
      ListProblem(gpu, c, seed).check(fmt::format("{} spread {}", name, spread));
    }
    c.score_spread = 1;
    ListProblem problem(gpu, c, seed);
    const std::vector<std::uint16_t> first = problem.answer();
    for (int i = 0; i < 10; ++i) CHECK(problem.answer() == first);
  });
}
