// What the producer of the sparse prefill kernel knows where lists have columns: behind the pages of an item
// (sparse_prefill_keys.cuh) come tiles of single keys, gathered 16 bytes at a time into the places where a
// box of 64 channels under the 128-byte swizzle would have put them.
#pragma once

#include <cstdint>

#include "attention/prefill_producer.cuh"
#include "attention/prefill_tile.cuh"
#include "attention/ptx/cp_async.cuh"
#include "attention/ptx/mbarrier.cuh"
#include "attention/ptx/shared_address.cuh"
#include "attention/sparse_prefill_keys.cuh"

namespace tessera::cuda {

inline constexpr int kPagesAWord = 32;  // of seen_pages

// The columns of an item that no seen page covers and that the table holds, from the last to the first. A
// whole warp walks together: every lane looks at one column; what is known of the next 32 and the 32 columns
// after those are on their way.
class ListedColumns {
 public:
  static constexpr unsigned kNowhere = ~0U;  // as a source: no key

  // A column as its position and its row of keys in the pool: a slot is 64 rows of keys and 64 of values.
  struct Column {
    int position;
    unsigned source;
  };

  __device__ __forceinline__ ListedColumns(const std::int32_t* columns, const std::int32_t* reachable,
                                           const std::uint32_t* seen_pages, const std::int32_t* table)
      : columns_(columns), seen_pages_(seen_pages), table_(table), left_(__ldg(reachable)) {}

  // What the first columns need hangs together in three loads: each step uses what the one before asked for.
  // Taken beside the tiles of pages that come first, they keep nobody waiting.
  __device__ __forceinline__ void prepare() {
    if (prepared_ == 0) {
      next_ = load_column();
    } else if (prepared_ == 1) {
      look_up();
      upcoming_ = load_column();
    } else if (prepared_ == 2) {
      fetch();
    }
    ++prepared_;
  }

  __device__ __forceinline__ bool any() {
    while (prepared_ < 3) prepare();
    while (held_ == 0 && left_ > -64) fetch();  // two batches are asked for and not fetched
    return held_ != 0;
  }

  // After any(): of the columns held, lane l gets number l − filled % 32; count: how many there are, `room`
  // at most, which are taken.
  __device__ __forceinline__ Column take(int filled, int room, int& count) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int holder = place_of((lane - filled) & 31);
    const Column column = {__shfl_sync(0xFFFFFFFF, current_.position, holder),
                           __shfl_sync(0xFFFFFFFF, current_.source, holder)};
    count = min(__popc(held_), room);
    held_ &= ~__ballot_sync(0xFFFFFFFF, __popc(held_ & ((1U << lane) - 1)) < count);
    return column;
  }

 private:
  // The lane that holds number n of the columns held; any lane where there are fewer.
  __device__ __forceinline__ int place_of(int n) const {
    int place = 0;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      if (__popc(held_ & ((1U << (place + step)) - 1)) <= n) place += step;
    }
    return place;
  }

  __device__ __forceinline__ int load_column() {
    const int index = left_ - 1 - static_cast<int>(threadIdx.x % 32);
    left_ -= 32;
    return index >= 0 ? __ldg(columns_ + index) : -1;
  }
  __device__ __forceinline__ void look_up() {
    slot_ = next_ < 0 ? kNoSlot : __ldg(table_ + next_ / kBlockTokens);
    pages_ = next_ < 0 ? 0U : __ldg(seen_pages_ + next_ / (kPageTokens * kPagesAWord));
  }
  __device__ __forceinline__ void fetch() {
    const bool covered = (pages_ >> next_ / kPageTokens % kPagesAWord & 1U) != 0;
    held_ = __ballot_sync(0xFFFFFFFF, slot_ >= 0 && !covered);
    current_ = {next_, static_cast<unsigned>(slot_) * (2 * kBlockTokens) +
                           static_cast<unsigned>(next_ & (kBlockTokens - 1))};
    next_ = upcoming_;
    look_up();
    upcoming_ = load_column();
  }

  const std::int32_t* columns_;
  const std::uint32_t* seen_pages_;
  const std::int32_t* table_;
  int left_;  // columns not asked for
  int prepared_ = 0;
  unsigned held_ = 0;
  Column current_ = {};
  int next_ = -1;  // the next batch, with …
  int slot_ = kNoSlot;
  unsigned pages_ = 0;
  int upcoming_ = -1;  // the one after
};

// Keys of an item of the plan: pages, then columns.
template <class C>
class ListedColumnKeys : ListedKeys<C> {
  using Pages = ListedKeys<C>;

 public:
  using Arguments = ListArguments;
  using Maps = ListMaps;
  using Pages::rows;
  using typename Pages::Coming;
  static_assert(C::kGathers && C::kKeys % 32 == 0);
  static constexpr int kLaneKeys = C::kKeys / 32;  // lane l looks after rows l, l + 32, …

  struct Tile {
    bool gathered;
    typename Pages::Tile pages;
    int position[kLaneKeys];
    unsigned source[kLaneKeys];
  };

  __device__ __forceinline__ ListedColumnKeys(const ListArguments& p, int item)
      : Pages(p, item), columns_(columns_of(p, this->bounds_.rows.head, this->bounds_.row_block)) {}

  __device__ __forceinline__ bool any() { return this->pages_.any() || columns_.any(); }

  __device__ __forceinline__ Tile take(bool& more) {
    Tile tile;
    bool pages = this->pages_.any();
    tile.gathered = more && !pages;
    if (!tile.gathered) {
      columns_.prepare();
      tile.pages = Pages::take(pages);
      more = pages || columns_.any();
      return tile;
    }
#pragma unroll
    for (int part = 0; part < kLaneKeys; ++part) {
      tile.position[part] = KeyTile<C>::kAbsent;
      tile.source[part] = ListedColumns::kNowhere;
    }
    const int lane = static_cast<int>(threadIdx.x % 32);
    int filled = 0;
    while (more && filled < C::kKeys) {
      int count = 0;
      const ListedColumns::Column column = columns_.take(filled, C::kKeys - filled, count);
#pragma unroll
      for (int part = 0; part < kLaneKeys; ++part) {
        const int number = 32 * part + lane - filled;
        if (number < 0 || number >= count) continue;
        tile.position[part] = column.position;
        tile.source[part] = column.source;
      }
      filled += count;
      more = columns_.any();
    }
    return tile;
  }

  static __device__ __forceinline__ void describe(const Tile& source, KeyTile<C>& tile) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    if (lane == 0) tile.gathered = source.gathered ? 1 : 0;
    if (!source.gathered) return Pages::describe(source.pages, tile);
#pragma unroll
    for (int part = 0; part < kLaneKeys; ++part) tile.position[32 * part + lane] = source.position[part];
    // Positions fall from row to row, and rows that are left over are the last.
    const bool full = __shfl_sync(0xFFFFFFFF, source.position[kLaneKeys - 1], 31) != KeyTile<C>::kAbsent;
    if (lane == 0) tile.top = full ? source.position[0] : KeyTile<C>::kAbsent;
  }

  // half: 0 keys, 1 values.
  static __device__ __forceinline__ void load(const ListArguments& p, const ListMaps& maps,
                                              typename C::T* target, std::uint64_t* full, const Tile& source,
                                              int half) {
    if (!source.gathered) return Pages::load(p, maps, target, full, source.pages, half);
    constexpr int kPiece = 16;  // bytes
    constexpr int kRowBytes = C::kHeadDim * static_cast<int>(sizeof(typename C::T));
    constexpr int kRowPieces = kRowBytes / kPiece;  // 8, 16 or 32
    constexpr int kRows = 32 / kRowPieces;          // that the warp copies at once
    constexpr int kGroupPieces = 8;                 // of 64 channels
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int piece = lane % kRowPieces;
    const int row_of_few = lane / kRowPieces;
    const char* const pool =
        static_cast<const char*>(p.pool) + half * kBlockTokens * kRowBytes + piece * kPiece;
    const std::uint32_t group =
        ptx::shared_address(target) + static_cast<std::uint32_t>(piece / kGroupPieces) * C::kGroupBytes;
    // Rows of a group of 8 stand one behind the other, their pieces where the swizzle puts them.
    constexpr int kTurnsOfEight = 8 / kRows;
    std::uint32_t places[kTurnsOfEight];
#pragma unroll
    for (int i = 0; i < kTurnsOfEight; ++i) {
      const int row = i * kRows + row_of_few;
      places[i] = group + row * 128 + static_cast<std::uint32_t>((piece ^ row) % kGroupPieces) * kPiece;
    }
#pragma unroll
    for (int part = 0; part < kLaneKeys; ++part) {
#pragma unroll
      for (int i = 0; i < 32 / kRows; ++i) {
        const unsigned key = __shfl_sync(0xFFFFFFFF, source.source[part], i * kRows + row_of_few);
        const bool there = key != ListedColumns::kNowhere;
        const std::uint32_t place =
            places[i % kTurnsOfEight] + (32 * part / 8 + i / kTurnsOfEight) * C::kEightRowsBytes;
        ptx::copy_16_bytes(place, pool + (there ? std::uint64_t{key} * kRowBytes : 0), there);
      }
    }
    ptx::arrive_after_copies(full);
    // This arrival is also that of the tile's description.
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(full);
  }

 private:
  static __device__ __forceinline__ ListedColumns columns_of(const ListArguments& p, int head,
                                                             int row_block) {
    const int list = head / p.heads_a_list;
    const std::int64_t row = static_cast<std::int64_t>(list) * p.row_blocks + row_block;
    return ListedColumns(p.columns + list * p.column_stride, &p.row_columns[row].reachable,
                         p.seen_pages + row * p.page_words, p.table + (head / p.group) * p.table_stride);
  }

  ListedColumns columns_;
};

}  // namespace tessera::cuda
