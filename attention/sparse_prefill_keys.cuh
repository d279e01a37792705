// What the producer of the sparse prefill kernel knows: items in the order of the plan, and the pages that an
// item's list names, packed into tiles whatever blocks they come from.
#pragma once

#include <cstdint>

#include "attention/prefill_producer.cuh"
#include "attention/prefill_tile.cuh"
#include "attention/ptx/tma.cuh"
#include "attention/sparse_prefill_cuda.hpp"

namespace tessera::cuda {

inline constexpr int kBlockPages = kBlockTokens / kPageTokens;

// One query block of one head.
struct alignas(16) ListItem {
  std::int64_t begin;  // of its list in entries
  std::int32_t count;
  std::int32_t row;  // head · row_blocks + index into rows
};

// What a query block has to do with its list's columns.
struct RowColumns {
  std::int32_t reachable;  // so many of the list are no later than its last row and than the last key
  std::int32_t cost;       // pages of its list, and the columns beside them by 16
};

struct ListArguments : PrefillArguments {
  const ListItem* order;  // (items)
  const QueryRows* rows;  // (row_blocks)
  const BlockEntry* entries;
  int row_blocks;
  // With columns, which sparse_prefill_columns.cuh reads:
  const void* pool;
  const std::int32_t* columns;      // (lists, column_stride)
  const RowColumns* row_columns;    // (lists, row_blocks)
  const std::uint32_t* seen_pages;  // (lists, row_blocks, page_words) a bit for each page that a list names
  std::int64_t column_stride;
  int page_words;
  int heads_a_list;
};

// What a launch needs, with the order of work and what columns ask for prepared on the stream.
struct ListPlan {
  ListArguments arguments;
  ListMaps maps;
  int multiprocessors;
};
ListPlan plan_sparse_prefill(const SparsePrefillParams& p);  // there is work

// The pages of a list that the table holds and that a row can see, from the last block to the first. A whole
// warp walks together: every lane looks at one entry, the slots of the next 32 entries and the 32 entries
// after those are on their way.
class ListedPages {
 public:
  struct Page {
    int block;     // −1: none
    int page;      // of the block
    int slot;      // of the block
    bool starts;   // all four pages of the block follow each other from here on …
    bool covered;  // … or from an earlier lane on
  };

  __device__ __forceinline__ ListedPages(const BlockEntry* entries, int count, const std::int32_t* table,
                                         int high)
      : entries_(entries), table_(table), left_(count), high_(high) {
    entry_ = load_entry();
    slot_ = load_slot(entry_);
    upcoming_ = load_entry();
    current_ = {};
    fetch();
  }

  __device__ __forceinline__ bool any() {
    while (cursor_ == total_ && left_ > -64) fetch();  // two batches are asked for and not fetched
    return cursor_ < total_;
  }

  // After any(): lane l gets page l of the next `wanted`. more: whether any are left.
  template <int kWanted>
  __device__ __forceinline__ Page take(bool& more) {
    static_assert(kWanted <= 32);
    const int lane = static_cast<int>(threadIdx.x % 32);
    Page page = {-1, 0, 0, false, false};
    int filled = 0;
    while (more && filled < kWanted) {
      const int at = cursor_ + lane - filled;
      // Of the entry that holds page `at`: the last whose pages begin there or before.
      int holder = 0;
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        if (__shfl_sync(0xFFFFFFFF, current_.offset, holder + step) <= at) holder += step;
      }
      const unsigned entry = __shfl_sync(0xFFFFFFFF, current_.entry, holder);
      const int slot = __shfl_sync(0xFFFFFFFF, current_.slot, holder);
      const int inside = at - __shfl_sync(0xFFFFFFFF, current_.offset, holder);
      if (lane >= filled && lane < kWanted && at < total_) {
        unsigned mask = entry & 15U;
        const int block = static_cast<int>(entry >> 4);
        const bool together = mask == 15U && high_ - block * kBlockTokens >= kBlockTokens - 1 &&
                              lane - inside >= filled && lane - inside + kBlockPages <= kWanted;
#pragma unroll
        for (int i = 0; i < kBlockPages - 1; ++i) {
          if (i < inside) mask &= mask - 1;
        }
        page = {block, __ffs(static_cast<int>(mask)) - 1, slot, together && inside == 0,
                together && inside != 0};
      }
      const int taken = min(kWanted - filled, total_ - cursor_);
      cursor_ += taken;
      filled += taken;
      more = any();
    }
    return page;
  }

 private:
  struct Batch {
    unsigned entry = 0;  // with the pages that are there
    int slot = kNoSlot;
    int offset = 0;  // pages of the lanes before
  };

  // The next 32 entries; a lane without one gets an entry without pages.
  __device__ __forceinline__ unsigned load_entry() {
    const int index = left_ - 1 - static_cast<int>(threadIdx.x % 32);
    left_ -= 32;
    return index >= 0 ? __ldg(&entries_[index].bits) : 0U;
  }
  __device__ __forceinline__ int load_slot(unsigned entry) const {
    const int block = static_cast<int>(entry >> 4);
    return (entry & 15U) != 0 && block <= high_ >> 6 ? __ldg(table_ + block) : kNoSlot;
  }
  __device__ __forceinline__ void fetch() {
    // Pages behind the last key that a row can see are as good as absent.
    const int block = static_cast<int>(entry_ >> 4);
    const int pages = slot_ < 0 ? 0 : min(kBlockPages, (high_ - block * kBlockTokens) / kPageTokens + 1);
    current_.entry = entry_ & (0xFFFFFFF0U | ((1U << pages) - 1));
    current_.slot = slot_;
    const int count = __popc(current_.entry & 15U);
    const unsigned before = (1U << threadIdx.x % 32) - 1;
    current_.offset = 0;
    total_ = 0;
#pragma unroll
    for (int bit = 0; bit < 3; ++bit) {
      const unsigned lanes = __ballot_sync(0xFFFFFFFF, (count >> bit & 1) != 0);
      current_.offset += __popc(lanes & before) << bit;
      total_ += __popc(lanes) << bit;
    }
    cursor_ = 0;
    entry_ = upcoming_;
    slot_ = load_slot(entry_);
    upcoming_ = load_entry();
  }

  const BlockEntry* entries_;
  const std::int32_t* table_;
  int left_;        // entries not asked for
  int high_;        // the last position that a row can see
  int cursor_ = 0;  // the next page of the current batch …
  int total_ = 0;   // … of so many
  Batch current_;
  unsigned entry_ = 0;  // of the next batch
  int slot_ = kNoSlot;
  unsigned upcoming_ = 0;  // of the one after
};

// Keys of an item of the plan.
template <class C>
class ListedKeys {
 public:
  using Arguments = ListArguments;
  using Maps = ListMaps;
  static_assert(C::kPartRows == kPageTokens && C::kParts <= 32);

  // Lane l looks after part l.
  struct Tile {
    int page;   // of the pool seen as (8 · slots, 16, D): of the keys; values lie four pages on
    int first;  // as in KeyTile
    int boxes;  // rows that this lane fetches: 64, 16 or 0
  };

  __device__ __forceinline__ ListedKeys(const ListArguments& p, int item)
      : ListedKeys(p, load_item(p.order + item)) {}

  // Of an item that comes next, what its beginning needs, which hangs together in three loads: read into L1
  // beside the third to fifth tile of the item before, when its ring is full.
  class Coming {
   public:
    __device__ __forceinline__ void look(const ListArguments& p, int item, int tile) {
      if (item >= p.items) return;
      if (tile == 2) {
        item_ = load_item(p.order + item);
      } else if (tile == 3) {
        const int index = item_.count - 1 - static_cast<int>(threadIdx.x % 32);
        touch(p.rows + item_.row % p.row_blocks);
        entry_ = index >= 0 ? __ldg(&p.entries[item_.begin + index].bits) : 0U;
        if (index >= 32) touch(p.entries + item_.begin + index - 32);
      } else if (tile == 4 && entry_ != 0 && static_cast<int>(entry_ >> 4) * kBlockTokens < p.length) {
        touch(p.table + item_.row / p.row_blocks / p.group * p.table_stride + (entry_ >> 4));
      }
    }

   private:
    static __device__ __forceinline__ void touch(const void* address) {
      int word = 0;
      asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(word) : "l"(address));
    }
    ListItem item_ = {};
    unsigned entry_ = 0;
  };

  __device__ __forceinline__ const ItemRows<C>& rows() const { return bounds_.rows; }
  __device__ __forceinline__ bool any() { return pages_.any(); }

  __device__ __forceinline__ Tile take(bool& more) {
    const ListedPages::Page page = pages_.template take<C::kParts>(more);
    // A page that is not there is fetched from behind its rows, and arrives as zeros, as do rows that do not
    // exist: those are fetched from before the page, and the page stands at the end of its rows.
    Tile tile = {0, KeyTile<C>::kAbsent, kPageTokens};
    if (page.block < 0) return tile;
    const int begin = page.block * kBlockTokens + page.page * kPageTokens;
    tile.page = 2 * kBlockPages * page.slot + page.page;
    tile.first = min(begin, p_.length - kPageTokens);
    tile.boxes = page.starts ? kBlockTokens : page.covered ? 0 : kPageTokens;
    return tile;
  }

  static __device__ __forceinline__ void describe(const Tile& source, KeyTile<C>& tile) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    if (lane < C::kParts) tile.first[lane] = source.first;
    // kAbsent and what stands at the end of its rows: some row holds nothing.
    const bool whole = source.first != KeyTile<C>::kAbsent && source.first % kPageTokens == 0;
    const int end = whole ? source.first + kPageTokens - 1 : KeyTile<C>::kAbsent;
    const auto top = __reduce_max_sync(0xFFFFFFFF, lane < C::kParts ? end : 0);
    if (lane == 0) tile.top = top;
  }

  // half: 0 keys, 1 values.
  static __device__ __forceinline__ void load(const PrefillArguments&, const ListMaps& maps,
                                              typename C::T* target, std::uint64_t* full, const Tile& source,
                                              int half) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    if (lane == 0) {
      announce<C>(full);
    } else if (C::kReleaseLanes == 32) {
      ptx::barrier_arrive(full);
    }
    __syncwarp();
    if (lane >= C::kParts || source.boxes == 0) return;
    typename C::T* const rows = target + lane * kPageTokens * C::kHeadDim;
    if (source.boxes == kBlockTokens) {
      ptx::load_box_5d(rows, &maps.blocks, full, {0, 0, 0, 0, source.page / kBlockPages + half},
                       ptx::kEvictLast);
      return;
    }
    const int page = source.page + kBlockPages * half;
    const int missing = -source.first & (kPageTokens - 1);
    if (missing == 0) {
      const int eight = source.first == KeyTile<C>::kAbsent ? 2 : 0;
      ptx::load_box_5d(rows, &maps.pages, full, {0, 0, 0, eight, page}, ptx::kEvictLast);
      return;
    }
    ptx::load_box_5d(rows, &maps.edges, full, {0, -missing, 0, page, 0}, ptx::kEvictLast);
    ptx::load_box_5d(rows + 8 * C::kHeadDim, &maps.edges, full, {0, 8 - missing, 0, page, 0},
                     ptx::kEvictLast);
  }

 protected:
  struct Bounds {
    ItemRows<C> rows;
    int high;
    int row_block;
    __device__ __forceinline__ Bounds(const ListArguments& p, const ListItem& item) {
      rows.head = item.row / p.row_blocks;
      row_block = item.row - rows.head * p.row_blocks;
      const QueryRows& at = p.rows[row_block];
      const int position = __ldg(&at.position);
      const int count = __ldg(&at.rows);
      rows.token = __ldg(&at.token);
      rows.end = rows.token + count;
#pragma unroll
      for (int block = 0; block < C::kRowBlocks; ++block) {
        rows.position[block] = block * kBlockRows < count ? position + block * kBlockRows : -1;
      }
      high = min(position + count, p.length) - 1;
    }
  };

  static __device__ __forceinline__ ListItem load_item(const ListItem* item) {
    const int4 words = __ldg(reinterpret_cast<const int4*>(item));
    return reinterpret_cast<const ListItem&>(words);
  }

  __device__ __forceinline__ ListedKeys(const ListArguments& p, const ListItem& item)
      : bounds_(p, item),
        pages_(p.entries + item.begin, item.count, p.table + (bounds_.rows.head / p.group) * p.table_stride,
               bounds_.high),
        p_(p) {}

  Bounds bounds_;
  ListedPages pages_;
  const ListArguments& p_;
};

}  // namespace tessera::cuda
