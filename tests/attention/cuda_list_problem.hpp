// Random lists of pages and columns for the sparse prefill kernel, and the naive answer's view of them.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "attention/sparse_prefill_cuda.hpp"
#include "tests/attention/cuda_prefill_problem.hpp"

namespace cuda_test {

using tessera::BlockEntry;
using tessera::ceil_div;
using tessera::DType;
using tessera::kBlockTokens;
using tessera::kPageTokens;
using tessera::TokenRange;
namespace cuda = tessera::cuda;

enum class Masks { kWhole, kMixed, kSingle };  // pages of the blocks in a list

struct ListCase : PrefillCase {
  int list_heads = 1;
  int rows_per_block = 64;
  double density = 0.3;  // of blocks
  Masks masks = Masks::kMixed;
  bool by_page = false;  // an entry names one page, and blocks stand in a list again
  bool guests = false;   // keys that nobody sees hold NaN
  bool columns = false;
  double column_density = 0.05;       // of positions …
  std::int64_t columns_from = 0;      // … from here on …
  std::int64_t columns_to = 1 << 30;  // … and before this
  bool first_block_seen = false;      // by every row
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
    if (c.columns) draw_columns(positions, chance);
    row_begin_.push_back(0);
    for (int list = 0; list < c.list_heads; ++list) {
      for (std::int64_t row = 0; row < query_blocks_; ++row) {
        const std::int64_t diagonal = (row + 1) * c.rows_per_block / kBlockTokens;
        const bool nothing = chance(0.1);
        for (std::int64_t block = 0; block < std::min(diagonal + 1, blocks_); ++block) {
          const bool forced = block == 0 && c.first_block_seen;
          if (!forced && (nothing || !chance(c.density))) continue;
          unsigned pages = c.masks == Masks::kSingle ? 1U << rng() % 4 : 1U + rng() % 15;
          if (forced || c.masks == Masks::kWhole || (c.masks == Masks::kMixed && chance(0.5))) pages = 15;
          if (c.by_page) {
            for (unsigned left = pages; left != 0; left &= left - 1) {
              entries_.push_back(BlockEntry::make(block, left & -left));
            }
          } else {
            entries_.push_back(BlockEntry::make(block, pages));
          }
          sees_[static_cast<std::size_t>((list * query_blocks_ + row) * blocks_ + block)] =
              static_cast<std::uint8_t>(pages);
        }
        row_begin_.push_back(static_cast<std::int64_t>(entries_.size()));
      }
    }
  }

  bool sees(int head, std::int64_t position, std::int64_t key) const {
    const int list = head / (case_.heads / case_.list_heads);
    return sees_page(list, position / case_.rows_per_block, key / kPageTokens) || is_column(list, key);
  }
  bool anyone_gathers(int kv_head, std::int64_t key) const {
    const int group = case_.heads / case_.kv_heads;
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      if (is_column(head / (case_.heads / case_.list_heads), key)) return true;
    }
    return false;
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
    if (!case_.columns) {
      workspace_ = gpu.poisoned(cuda::sparse_prefill_workspace(case_.heads, row_blocks()));
      return;
    }
    workspace_ = gpu.poisoned(
        cuda::sparse_prefill_workspace(case_.heads, row_blocks(), case_.list_heads, case_.length));
    columns_device_ = gpu.upload(columns_);
    column_counts_device_ = gpu.upload(column_counts_);
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
    if (case_.columns) {
      p.lists.columns = columns_device_.as<std::int32_t>();
      p.lists.column_stride = column_stride_;
      p.lists.column_counts = column_counts_device_.as<std::int32_t>();
    }
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
  // Behind a list's columns up to the stride lie numbers that nobody may follow.
  template <typename Chance>
  void draw_columns(std::int64_t positions, const Chance& chance) {
    column_stride_ = positions + 67;
    columns_.assign(static_cast<std::size_t>(case_.list_heads * column_stride_), 0x7FFFFFF0);
    for (int list = 0; list < case_.list_heads; ++list) {
      std::int32_t* const columns = columns_.data() + list * column_stride_;
      std::int32_t count = 0;
      const std::int64_t to = std::min(positions + 64, case_.columns_to);
      for (std::int64_t key = case_.columns_from; key < to; ++key) {
        if (chance(case_.column_density)) columns[count++] = static_cast<std::int32_t>(key);
      }
      column_counts_.push_back(count);
    }
  }
  bool is_column(int list, std::int64_t key) const {
    if (!case_.columns) return false;
    const std::int32_t* const columns = columns_.data() + list * column_stride_;
    return std::binary_search(columns, columns + column_counts_[static_cast<std::size_t>(list)],
                              static_cast<std::int32_t>(key));
  }
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
  std::int64_t column_stride_ = 0;
  std::vector<std::int32_t> columns_;  // (list_heads, column_stride)
  std::vector<std::int32_t> column_counts_;
  std::vector<cuda::QueryRows> rows_;
  cuda::DeviceBuffer row_begin_device_, entries_device_, rows_device_, workspace_, columns_device_,
      column_counts_device_;
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
      c.gathered = [lists](int kv_head, std::int64_t key) { return lists->anyone_gathers(kv_head, key); };
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
void for_kernels(std::initializer_list<int> head_dims, std::initializer_list<int> rows_per_block,
                 const Body& body) {
  for (int head_dim : head_dims) {
    for (DType dtype : {DType::kBF16, DType::kF16}) {
      for (int rows : rows_per_block) {
        ListCase c;
        c.head_dim = head_dim;
        c.dtype = dtype;
        c.rows_per_block = rows;
        body(c, fmt::format("D={} {} M={}", head_dim, name_of(dtype), rows));
      }
    }
  }
}

template <typename Body>
void for_every_kernel(const Body& body) {
  for_kernels({64, 128, 256}, {64, 128}, body);
}

inline void set_group(ListCase& c, int group, int kv_heads, bool shared = false) {
  c.heads = group * kv_heads;
  c.kv_heads = kv_heads;
  c.list_heads = shared ? kv_heads : c.heads;
}

}  // namespace cuda_test
