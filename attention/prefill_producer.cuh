// The producer warps of the prefill kernels: walk the keys that each item needs and bring them into a ring.
// Which keys is what a Keys class knows; here the dense one.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "attention/prefill_tile.cuh"
#include "attention/ptx/mbarrier.cuh"
#include "attention/ptx/tma.cuh"
#include "kvcache/kv_view.hpp"

namespace tessera::cuda {

// The blocks of a range that a table holds, from the last to the first. A whole warp walks together: every
// lane looks at one entry, and the next 32 entries are on their way.
class HeldBlocks {
 public:
  __device__ HeldBlocks(const std::int32_t* row, int low, int high) : row_(row), low_(low), top_(high) {
    upcoming_ = load(top_);
    fetch();
  }
  __device__ __forceinline__ bool any() {
    while (held_ == 0 && top_ >= low_) fetch();
    return held_ != 0;
  }
  // After any() only.
  __device__ __forceinline__ void take(int& block, int& slot) {
    const int lane = __ffs(static_cast<int>(held_)) - 1;
    held_ &= held_ - 1;
    block = current_top_ - lane;
    slot = __shfl_sync(0xFFFFFFFF, slots_, lane);
  }

 private:
  __device__ __forceinline__ int load(int top) const {
    const int block = top - static_cast<int>(threadIdx.x % 32);
    return block >= low_ ? __ldg(row_ + block) : kNoSlot;
  }
  __device__ __forceinline__ void fetch() {
    slots_ = upcoming_;
    current_top_ = top_;
    held_ = __ballot_sync(0xFFFFFFFF, slots_ >= 0);
    top_ -= 32;
    upcoming_ = load(top_);
  }

  const std::int32_t* row_;
  int low_;
  int top_;  // of the entries not looked at yet
  int current_top_ = 0;
  int slots_ = kNoSlot;
  int upcoming_ = kNoSlot;
  unsigned held_ = 0;
};

// By the leader, before it copies a tile in boxes.
template <class C>
__device__ __forceinline__ void announce(std::uint64_t* full) {
  constexpr std::uint32_t kTileBytes = C::kKeys * C::kHeadDim * sizeof(typename C::T);
  ptx::barrier_arrive_expect(full, kTileBytes);
  if constexpr (C::kGathers) ptx::barrier_arrive(full, C::kFullArrivals - 1);
}

// Keys of a dense item: every block up to the diagonal that the table holds.
template <class C>
class HeldKeys {
 public:
  using Arguments = PrefillArguments;
  using Maps = PrefillMaps;

  // Where the blocks of a tile are in the pool, and `first` as in KeyTile.
  struct Tile {
    int slot[C::kParts];
    int first[C::kParts];
  };

  __device__ __forceinline__ HeldKeys(const PrefillArguments& p, int item)
      : HeldKeys(p, decode_item<C>(p, item)) {}

  __device__ __forceinline__ const ItemRows<C>& rows() const { return bounds_.rows; }
  __device__ __forceinline__ bool any() { return blocks_.any(); }

  // The next keys; more: whether there are any, before and after. An item without keys is one tile of absent
  // blocks.
  __device__ __forceinline__ Tile take(bool& more) {
    Tile tile;
#pragma unroll
    for (int part = 0; part < C::kParts; ++part) {
      tile.slot[part] = 0;
      tile.first[part] = KeyTile<C>::kAbsent;
      if (!more) continue;
      int block = 0;
      blocks_.take(block, tile.slot[part]);
      tile.first[part] = min(block * kBlockRows, p_.length - kBlockRows);
      more = blocks_.any();
    }
    return tile;
  }

  static __device__ __forceinline__ void describe(const Tile& source, KeyTile<C>& tile) {
    if (threadIdx.x % 32 != 0) return;
#pragma unroll
    for (int part = 0; part < C::kParts; ++part) tile.first[part] = source.first[part];
  }

  // half: 0 keys, 1 values. The pool is seen as (half slots, 64 rows, D), and what lies outside of 64 rows
  // arrives as zeros: a block whose last rows do not exist is fetched from a negative row on, so that they
  // never come; a block that is not there is fetched from row 64.
  static __device__ __forceinline__ void load(const PrefillArguments&, const PrefillMaps& maps,
                                              typename C::T* target, std::uint64_t* full, const Tile& source,
                                              int half) {
    if (threadIdx.x % 32 != 0) return;
    announce<C>(full);
#pragma unroll
    for (int part = 0; part < C::kParts; ++part) {
      const int first = source.first[part];
      const int row = first == KeyTile<C>::kAbsent ? kBlockRows : -(-first & (kBlockRows - 1));
#pragma unroll
      for (int g = 0; g < C::kGroups; ++g) {
        ptx::load_box_3d(target + (g * C::kKeys + part * kBlockRows) * kBoxChannels, &maps.pool, full,
                         g * kBoxChannels, row, 2 * source.slot[part] + half, ptx::kEvictLast);
      }
    }
  }

 private:
  struct Bounds {
    ItemRows<C> rows;
    int low = 0;
    int high = -1;
    __device__ __forceinline__ Bounds(const PrefillArguments& p, const WorkItem& work) {
      rows.head = work.head;
      rows.token = work.query_block * kBlockRows;
      rows.end = p.tokens;
      low = p.length;
#pragma unroll
      for (int w = 0; w < C::kRowBlocks; ++w) {
        const int block = work.query_block + w;
        const int position = block < p.query_blocks ? __ldg(p.block_positions + block) : -1;
        rows.position[w] = position;
        if (position < 0) continue;
        high = max(high, position + min(kBlockRows, p.tokens - block * kBlockRows) - 1);
        low = min(low, p.window > 0 ? max(0, position - p.window + 1) : 0);
      }
      high = min(high, p.length - 1);
    }
  };

  __device__ __forceinline__ HeldKeys(const PrefillArguments& p, const WorkItem& work)
      : bounds_(p, work),
        blocks_(p.table + (work.head / p.group) * p.table_stride, bounds_.low / kBlockRows,
                bounds_.high >= 0 ? bounds_.high / kBlockRows : -1),
        p_(p) {}

  Bounds bounds_;
  HeldBlocks blocks_;
  const PrefillArguments& p_;
};

// The first tile of an item waits for its queries' place: groups of 64 channels of each query block.
template <class C>
__device__ __forceinline__ void load_queries(const PrefillMaps& maps, PrefillRing<C>& s,
                                             const ItemRows<C>& rows, std::uint32_t parity) {
  constexpr std::uint32_t kQueryBytes = kBlockRows * C::kHeadDim * sizeof(typename C::T);
#pragma unroll
  for (int w = 0; w < C::kRowBlocks; ++w) {
    ptx::barrier_wait(&s.q_empty[w], parity ^ 1);
    if (threadIdx.x % 32 != 0) continue;
    ptx::barrier_arrive_expect(&s.q_full[w], kQueryBytes);
#pragma unroll
    for (int g = 0; g < C::kGroups; ++g) {
      ptx::load_box_3d(s.q[w] + g * kBlockRows * kBoxChannels, &maps.q, &s.q_full[w], g * kBoxChannels,
                       rows.head, rows.token + w * kBlockRows, ptx::kEvictFirst);
    }
  }
}

// A tile's keys, and what it says of itself, once its stage is free.
template <class C, class Keys>
__device__ __forceinline__ void load_keys(const typename Keys::Arguments& p, const typename Keys::Maps& maps,
                                          PrefillRing<C>& s, const RingPlace<C::kStages>& place,
                                          const typename Keys::Tile& tile, const ItemRows<C>& rows,
                                          bool last) {
  std::uint64_t* full = &s.k_full[place.stage];
  ptx::barrier_wait(&s.k_empty[place.stage], place.parity ^ 1);
  KeyTile<C>& described = s.tiles[place.stage];
  Keys::describe(tile, described);
  if (threadIdx.x % 32 == 0) {
    described.rows = rows;
    described.last = last ? 1 : 0;
  }
  __syncwarp();
  Keys::load(p, maps, s.k[place.stage], full, tile, 0);
}

template <class C, class Keys>
__device__ __forceinline__ void load_values(const typename Keys::Arguments& p,
                                            const typename Keys::Maps& maps, PrefillRing<C>& s,
                                            const RingPlace<C::kStages>& place,
                                            const typename Keys::Tile& tile) {
  ptx::barrier_wait(&s.v_empty[place.stage], place.parity ^ 1);
  Keys::load(p, maps, s.v[place.stage], &s.v_full[place.stage], tile, 1);
}

// Tells the consumers that there is no more work. The last producer to come leaves the counters as it found
// them.
template <class C>
__device__ __forceinline__ void end_of_work(const PrefillArguments& p, PrefillRing<C>& s,
                                            const RingPlace<C::kStages>& place, int producers) {
  ptx::barrier_wait(&s.k_empty[place.stage], place.parity ^ 1);
  if (threadIdx.x % 32 != 0) return;
  s.tiles[place.stage].rows.head = -1;
  ptx::barrier_arrive(&s.k_full[place.stage], C::kFullArrivals);
  __threadfence();
  if (atomicAdd(p.counters + 1, 1U) == static_cast<unsigned>(producers) - 1) {
    p.counters[0] = 0;
    p.counters[1] = 0;
  }
}

// By one warp: keys and values of dense items.
template <class C, class Keys>
__device__ __forceinline__ void produce(const typename Keys::Arguments& p, const typename Keys::Maps& maps,
                                        PrefillRing<C>& s) {
  RingPlace<C::kStages> place;
  RingPlace<C::kStages> value_place;  // of the tile whose values have not been asked for
  typename Keys::Tile values;
  bool values_due = false;
  std::uint32_t q_parity = 0;
  const int producers = static_cast<int>(gridDim.x);
  int item = static_cast<int>(blockIdx.x);
  while (item < p.items) {
    int next_item = 0;  // asked for early: the answer is there when this item has been streamed
    if (threadIdx.x % 32 == 0) next_item = producers + static_cast<int>(atomicAdd(p.counters, 1U));

    Keys keys(p, item);
    bool first_tile = true;
    bool more = keys.any();
    do {
      const typename Keys::Tile tile = keys.take(more);
      load_keys<C, Keys>(p, maps, s, place, tile, keys.rows(), !more);
      // Values are needed one tile later than keys.
      if (values_due) load_values<C, Keys>(p, maps, s, value_place, values);
      values = tile;
      value_place = place;
      values_due = true;
      if (first_tile) {
        load_queries<C>(maps, s, keys.rows(), q_parity);
        q_parity ^= 1;
        first_tile = false;
      }
      place.advance();
    } while (more);
    item = __shfl_sync(0xFFFFFFFF, next_item, 0);
  }
  if (values_due) load_values<C, Keys>(p, maps, s, value_place, values);
  end_of_work<C>(p, s, place, producers);
}

// By one warp: keys and queries of listed items. Another, produce_values, walks the same lists one item
// behind at most, since copies of single pages and keys take a warp long to issue. ring: which of the CTA's
// this is.
template <class C, class Keys>
__device__ __forceinline__ void produce_keys(const typename Keys::Arguments& p,
                                             const typename Keys::Maps& maps, PrefillRing<C>& s,
                                             BegunItem& begun, int ring) {
  RingPlace<C::kStages> place;
  RingPlace<1> item_place;
  std::uint32_t q_parity = 0;
  const int producers = static_cast<int>(gridDim.x) * C::kRings;
  int item = ring * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
  while (true) {
    ptx::barrier_wait(&begun.empty, item_place.parity ^ 1);
    if (threadIdx.x % 32 == 0) {
      begun.item = item;
      ptx::barrier_arrive(&begun.full);
    }
    item_place.advance();
    if (item >= p.items) break;
    int next_item = 0;  // asked for early: the answer is there when this item has been streamed
    if (threadIdx.x % 32 == 0) next_item = producers + static_cast<int>(atomicAdd(p.counters, 1U));

    Keys keys(p, item);
    typename Keys::Coming coming;
    int tiles = 0;
    bool more = keys.any();
    do {
      const typename Keys::Tile tile = keys.take(more);
      load_keys<C, Keys>(p, maps, s, place, tile, keys.rows(), !more);
      if (tiles == 0) {
        load_queries<C>(maps, s, keys.rows(), q_parity);
        q_parity ^= 1;
      }
      if (tiles >= 2 && tiles <= 4) coming.look(p, __shfl_sync(0xFFFFFFFF, next_item, 0), tiles);
      ++tiles;
      place.advance();
    } while (more);
    item = __shfl_sync(0xFFFFFFFF, next_item, 0);
  }
  end_of_work<C>(p, s, place, producers);
}

// By one warp: values of the items that produce_keys begins.
template <class C, class Keys>
__device__ __forceinline__ void produce_values(const typename Keys::Arguments& p,
                                               const typename Keys::Maps& maps, PrefillRing<C>& s,
                                               BegunItem& begun) {
  RingPlace<C::kStages> place;
  RingPlace<1> item_place;
  while (true) {
    ptx::barrier_wait(&begun.full, item_place.parity);
    const int item = begun.item;
    __syncwarp();
    if (C::kReleaseLanes == 32 || threadIdx.x % 32 == 0) ptx::barrier_arrive(&begun.empty);
    item_place.advance();
    if (item >= p.items) break;
    Keys keys(p, item);
    bool more = keys.any();
    do {
      const typename Keys::Tile tile = keys.take(more);
      load_values<C, Keys>(p, maps, s, place, tile);
      place.advance();
    } while (more);
  }
}

}  // namespace tessera::cuda
