// Sparse prefill attention on the GPU against a naive fp64 answer: fresh random lists of pages, irregular
// sizes, groups that share, shards and odd starts, holes in the block table, guests of which only the pages
// in some list hold keys. What was never written is NaN.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <memory>

#include "attention/sparse_prefill_cuda.hpp"
#include "tests/attention/cuda_prefill_problem.hpp"

using namespace tessera;
using cuda_test::Gpu;
using cuda_test::PrefillCase;
using cuda_test::PrefillProblem;

namespace {

enum class Masks { kWhole, kMixed, kSingle };  // pages of the blocks in a list

struct ListCase : PrefillCase {
  int list_heads = 1;
  int rows_per_block = 64;
  double density = 0.3;  // of blocks
  Masks masks = Masks::kMixed;
  bool guests = false;  // pages that nobody sees hold NaN
};

// Random lists for the positions that a case has rows at.
class DrawnLists {
 public:
  DrawnLists(const ListCase& c, std::uint64_t seed) : case_(c) {
    std::mt19937_64 rng(seed);
    const auto chance = [&rng](double p) { return static_cast<double>(rng() >> 11) * 0x1p-53 < p; };
    std::int64_t positions = 0;
    for (std::size_t i = 0; i < c.starts.size(); ++i) {
      const std::int64_t before = static_cast<std::int64_t>(i) * c.shard;
      const std::int64_t tokens = std::min(c.shard, c.tokens - before);
      ranges_.push_back({c.starts[i], c.starts[i] + tokens});
      positions = ranges_.back().end;
    }
    query_blocks_ = ceil_div(positions, c.rows_per_block);
    // Lists may name pages past the diagonal and past the last key, which nobody sees.
    blocks_ = ceil_div(positions, kBlockTokens) + 2;
    sees_.assign(static_cast<std::size_t>(c.list_heads * query_blocks_ * blocks_), 0);
    row_begin_.push_back(0);
    for (int list = 0; list < c.list_heads; ++list) {
      for (std::int64_t row = 0; row < query_blocks_; ++row) {
        const std::int64_t diagonal = (row + 1) * c.rows_per_block / kBlockTokens;
        const bool nothing = chance(0.1);
        for (std::int64_t block = 0; block < std::min(diagonal + 1, blocks_); ++block) {
          if (nothing || !chance(c.density)) continue;
          unsigned pages = c.masks == Masks::kSingle ? 1U << rng() % 4 : 1U + rng() % 15;
          if (c.masks == Masks::kWhole || (c.masks == Masks::kMixed && chance(0.5))) pages = 15;
          entries_.push_back(BlockEntry::make(block, pages));
          sees_[static_cast<std::size_t>((list * query_blocks_ + row) * blocks_ + block)] =
              static_cast<std::uint8_t>(pages);
        }
        row_begin_.push_back(static_cast<std::int64_t>(entries_.size()));
      }
    }
  }

  bool sees(int head, std::int64_t position, std::int64_t key) const {
    return sees_page(head / (case_.heads / case_.list_heads), position / case_.rows_per_block,
                     key / kPageTokens);
  }
  bool anyone_sees(int kv_head, std::int64_t page) const {
    const int group = case_.heads / case_.kv_heads;
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      for (std::int64_t row = 0; row < query_blocks_; ++row) {
        if (sees_page(head / (case_.heads / case_.list_heads), row, page)) return true;
      }
    }
    return false;
  }

  void upload(Gpu& gpu) {
    row_begin_device_ = gpu.upload(row_begin_);
    entries_.push_back(BlockEntry::make(0, 0));  // so that it is not empty
    entries_device_ = gpu.upload(entries_);
    rows_ = cuda::query_rows(ranges_, case_.rows_per_block);
    rows_device_ = gpu.upload(rows_);
    workspace_ = gpu.poisoned(cuda::sparse_prefill_workspace(case_.heads, row_blocks()));
  }

  cuda::SparsePrefillParams params(const cuda::PrefillParams& dense) {
    cuda::SparsePrefillParams p;
    p.tokens = dense.tokens;
    p.heads = dense.heads;
    p.q = dense.q;
    p.q_row_stride = dense.q_row_stride;
    p.rows = rows_device_.as<cuda::QueryRows>();
    p.row_blocks = row_blocks();
    p.lists.heads = case_.list_heads;
    p.lists.rows_per_block = case_.rows_per_block;
    p.lists.query_blocks = query_blocks_;
    p.lists.row_begin = row_begin_device_.as<std::int64_t>();
    p.lists.entries = entries_device_.as<BlockEntry>();
    p.kv = dense.kv;
    p.pool_slots = dense.pool_slots;
    p.scale = dense.scale;
    p.out = dense.out;
    p.lse = dense.lse;
    p.workspace = workspace_.data();
    p.counters = dense.counters;
    p.stream = dense.stream;
    return p;
  }

 private:
  std::int64_t row_blocks() const { return static_cast<std::int64_t>(rows_.size()); }
  bool sees_page(int list, std::int64_t row, std::int64_t page) const {
    return (sees_[static_cast<std::size_t>((list * query_blocks_ + row) * blocks_ + page / 4)] >> page % 4 &
            1) != 0;
  }

  ListCase case_;
  std::vector<TokenRange> ranges_;
  std::int64_t query_blocks_ = 0;
  std::int64_t blocks_ = 0;
  std::vector<std::uint8_t> sees_;  // (list, row, block) masks of pages
  std::vector<std::int64_t> row_begin_;
  std::vector<BlockEntry> entries_;
  std::vector<cuda::QueryRows> rows_;
  cuda::DeviceBuffer row_begin_device_, entries_device_, rows_device_, workspace_;
};

// A case with lists, ready to run.
class ListProblem {
 public:
  ListProblem(Gpu& gpu, const ListCase& c, std::uint64_t seed)
      : lists_(std::make_unique<DrawnLists>(c, seed + 1)), problem_(gpu, with_lists(c), seed) {
    lists_->upload(gpu);
  }
  void check(const std::string& name) { problem_.check(name, run()); }
  std::vector<std::uint16_t> answer() { return problem_.answer(run()); }

 private:
  PrefillCase with_lists(ListCase c) const {
    const DrawnLists* lists = lists_.get();
    c.sees = [lists](int head, std::int64_t position, std::int64_t key) {
      return lists->sees(head, position, key);
    };
    if (c.guests) {
      c.filled = [lists](int kv_head, std::int64_t page) { return lists->anyone_sees(kv_head, page); };
    }
    return c;
  }
  cuda_test::PrefillRun run() const {
    return [lists = lists_.get()](const cuda::PrefillParams& p) {
      cuda::sparse_prefill_attention(lists->params(p));
    };
  }

  std::unique_ptr<DrawnLists> lists_;
  PrefillProblem problem_;
};

template <typename Body>
void for_every_kernel(const Body& body) {
  for (int head_dim : {64, 128, 256}) {
    for (DType dtype : {DType::kBF16, DType::kF16}) {
      for (int rows : {64, 128}) {
        ListCase c;
        c.head_dim = head_dim;
        c.dtype = dtype;
        c.rows_per_block = rows;
        body(c, fmt::format("D={} {} M={}", head_dim, name_of(dtype), rows));
      }
    }
  }
}

void set_group(ListCase& c, int group, int kv_heads, bool shared = false) {
  c.heads = group * kv_heads;
  c.kv_heads = kv_heads;
  c.list_heads = shared ? kv_heads : c.heads;
}

}  // namespace

TEST_CASE("sparse prefill on the GPU: random lists, sequences of any length") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  const int groups[] = {1, 4, 7, 8};
  const Masks masks[] = {Masks::kWhole, Masks::kMixed, Masks::kSingle};
  int turn = 0;
  for_every_kernel([&](ListCase c, const std::string& name) {
    for (std::int64_t length : {1, 17, 64, 65, 127, 128, 129, 193, 257, 1000}) {
      set_group(c, groups[turn % 4], 1 + turn / 4 % 2, turn % 3 == 0);
      c.masks = masks[turn % 3];
      c.density = turn % 5 == 0 ? 1.0 : 0.4;
      ++turn;
      c.tokens = c.length = length;
      c.sampled_rows = length > 300 ? 150 : 0;
      ListProblem(gpu, c, seed).check(fmt::format("{} S={} H={} K={}", name, length, c.heads, c.kv_heads));
    }
    set_group(c, 4, 2);
    c.masks = Masks::kMixed;
    c.tokens = c.length = 9001;  // lists of more than 32 blocks
    c.density = 0.7;
    c.sampled_rows = 60;
    ListProblem(gpu, c, seed).check(name + " S=9001 long lists");
    c.density = 0.02;
    ListProblem(gpu, c, seed).check(name + " S=9001 short lists");
  });
}

TEST_CASE("sparse prefill on the GPU: some rows of a sequence, from any position on") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  for_every_kernel([&](ListCase c, const std::string& name) {
    set_group(c, 7, 1);
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
  });
}

TEST_CASE("sparse prefill on the GPU: holes, and guests with poison in the pages nobody asked for") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  for_every_kernel([&](ListCase c, const std::string& name) {
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
      c.density = 0.03;
      ListProblem(gpu, c, seed).check(name + " guests");
    }
    c.held = [](int head, std::int64_t block) { return (block + head) % 3 != 0; };
    ListProblem(gpu, c, seed).check(name + " guests and holes");
  });
}

TEST_CASE("sparse prefill on the GPU: scores that spread, and maxima that keep growing") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  for_every_kernel([&](ListCase c, const std::string& name) {
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

TEST_CASE("sparse prefill on the GPU: the same bits every time") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  for_every_kernel([&](ListCase c, const std::string& name) {
    CAPTURE(name);
    set_group(c, 8, 2);
    c.tokens = c.length = 2500;
    ListProblem problem(gpu, c, seed);
    const std::vector<std::uint16_t> first = problem.answer();
    for (int i = 0; i < 10; ++i) CHECK(problem.answer() == first);
  });
}

TEST_CASE("rows of a call by query blocks") {
  const std::vector<TokenRange> ranges = {{37, 130}, {256, 256}, {512, 640}};
  const std::vector<cuda::QueryRows> rows = cuda::query_rows(ranges, 64);
  const int expected[][3] = {{0, 37, 27}, {27, 64, 64}, {91, 128, 2}, {93, 512, 64}, {157, 576, 64}};
  REQUIRE(rows.size() == std::size(expected));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    CHECK(rows[i].token == expected[i][0]);
    CHECK(rows[i].position == expected[i][1]);
    CHECK(rows[i].rows == expected[i][2]);
  }
}
