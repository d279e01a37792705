// The producer warp of the prefill kernel: walks the blocks that each item needs and brings them into the
// ring.
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

// Where the blocks of a tile are in the pool: half slots (keys even, values odd) and the row at which the box
// starts. The pool is seen as (half slots, 64 rows, D), and what lies outside of 64 rows arrives as zeros: a
// block whose last rows do not exist is fetched from a negative row on, so that they never come and the block
// stands at the end of its part of the tile; a block that is not there is fetched from row 64.
template <class C>
struct TileSource {
  int slot[C::kBlocks];
  int row[C::kBlocks];
};

template <class C>
__device__ __forceinline__ void load_tile(const CUtensorMap* pool, typename C::T* target, std::uint64_t* full,
                                          const TileSource<C>& source, int half) {
#pragma unroll
  for (int b = 0; b < C::kBlocks; ++b) {
#pragma unroll
    for (int g = 0; g < C::kGroups; ++g) {
      ptx::load_box_3d(target + (g * C::kKeys + b * kBlockRows) * kBoxChannels, pool, full, g * kBoxChannels,
                       source.row[b], 2 * source.slot[b] + half, ptx::kEvictLast);
    }
  }
}

template <class C>
__device__ __forceinline__ void produce(const PrefillArguments& p, const CUtensorMap* q_map,
                                        const CUtensorMap* pool_map, PrefillShared<C>& s) {
  constexpr std::uint32_t kTileBytes = C::kKeys * C::kHeadDim * sizeof(typename C::T);
  constexpr std::uint32_t kQueryBytes = kBlockRows * C::kHeadDim * sizeof(typename C::T);
  const bool leader = threadIdx.x == 0;
  RingPlace<C::kStages> place;
  RingPlace<C::kStages> value_place;  // of the tile whose values have not been asked for
  TileSource<C> values;
  bool values_due = false;
  std::uint32_t q_parity = 0;
  const auto load_values = [&] {
    ptx::barrier_wait(&s.v_empty[value_place.stage], value_place.parity ^ 1);
    if (leader) {
      ptx::barrier_arrive_expect(&s.v_full[value_place.stage], kTileBytes);
      load_tile<C>(pool_map, s.v[value_place.stage], &s.v_full[value_place.stage], values, 1);
    }
  };

  int item = static_cast<int>(blockIdx.x);
  while (item < p.items) {
    int next_item = 0;  // asked for early: the answer is there when this item has been streamed
    if (leader) next_item = static_cast<int>(gridDim.x + atomicAdd(p.counters, 1U));

    const WorkItem work = decode_item<C>(p, item);
    int rows[C::kConsumers];
    int high = -1;
    int low = p.length;
#pragma unroll
    for (int w = 0; w < C::kConsumers; ++w) {
      const int block = work.query_block + w;
      rows[w] = block < p.query_blocks ? __ldg(p.block_positions + block) : -1;
      if (rows[w] < 0) continue;
      high = max(high, rows[w] + min(kBlockRows, p.tokens - block * kBlockRows) - 1);
      low = min(low, p.window > 0 ? max(0, rows[w] - p.window + 1) : 0);
    }
    high = min(high, p.length - 1);
    HeldBlocks held(p.table + (work.head / p.group) * p.table_stride, low / kBlockRows,
                    high >= 0 ? high / kBlockRows : -1);
    bool first_tile = true;
    bool more = held.any();
    do {
      // An item without keys is one tile of absent blocks.
      TileSource<C> keys;
      int first[C::kBlocks];
      int begin[C::kBlocks];
#pragma unroll
      for (int b = 0; b < C::kBlocks; ++b) {
        keys.slot[b] = 0;
        keys.row[b] = kBlockRows;
        first[b] = KeyTile<C>::kAbsent;
        begin[b] = 0;
        if (!more) continue;
        int block = 0;
        held.take(block, keys.slot[b]);
        const int present = min(kBlockRows, p.length - block * kBlockRows);
        keys.row[b] = present - kBlockRows;
        begin[b] = block * kBlockRows;
        first[b] = begin[b] + keys.row[b];
        more = held.any();
      }
      ptx::barrier_wait(&s.k_empty[place.stage], place.parity ^ 1);
      if (leader) {
        KeyTile<C>& tile = s.tiles[place.stage];
        tile.item = item;
        tile.last = more ? 0 : 1;
#pragma unroll
        for (int w = 0; w < C::kConsumers; ++w) tile.rows[w] = rows[w];
#pragma unroll
        for (int b = 0; b < C::kBlocks; ++b) {
          tile.first[b] = first[b];
          tile.begin[b] = begin[b];
        }
        ptx::barrier_arrive_expect(&s.k_full[place.stage], kTileBytes);
        load_tile<C>(pool_map, s.k[place.stage], &s.k_full[place.stage], keys, 0);
      }
      // Values are needed one tile later than keys.
      if (values_due) load_values();
      values = keys;
      value_place = place;
      values_due = true;
      if (first_tile) {
#pragma unroll
        for (int w = 0; w < C::kConsumers; ++w) {
          ptx::barrier_wait(&s.q_empty[w], q_parity ^ 1);
          if (!leader) continue;
          ptx::barrier_arrive_expect(&s.q_full[w], kQueryBytes);
#pragma unroll
          for (int g = 0; g < C::kGroups; ++g) {
            ptx::load_box_3d(s.q[w] + g * kBlockRows * kBoxChannels, q_map, &s.q_full[w], g * kBoxChannels,
                             work.head, (work.query_block + w) * kBlockRows, ptx::kEvictFirst);
          }
        }
        q_parity ^= 1;
        first_tile = false;
      }
      place.advance();
    } while (more);
    item = __shfl_sync(0xFFFFFFFF, next_item, 0);
  }
  if (values_due) load_values();
  ptx::barrier_wait(&s.k_empty[place.stage], place.parity ^ 1);
  if (leader) {
    s.tiles[place.stage].item = -1;
    ptx::barrier_arrive(&s.k_full[place.stage]);
    // The last to ask leaves the counters as it found them.
    __threadfence();
    if (atomicAdd(p.counters + 1, 1U) == gridDim.x - 1) {
      p.counters[0] = 0;
      p.counters[1] = 0;
    }
  }
}

}  // namespace tessera::cuda
