// What the two sides of the prefill kernels share: their configuration and arguments, the plan of shared
// memory, what a tile says of itself, the order of work of the dense one.
#pragma once

#include <cuda.h>

#include <algorithm>
#include <cstdint>

#include "attention/prefill_cuda.hpp"

namespace tessera::cuda {

inline constexpr int kWarpgroup = 128;
inline constexpr int kBoxChannels = 64;  // what the 128-byte swizzle spans
inline constexpr int kBlockRows = 64;    // rows of a query block and of a block of the cache

// kConsumers warpgroups of 64 rows; kKeys keys a tile, kStages tiles in flight; kTurns: warpgroups take turns
// at issuing products; kSlack: powers of two that a maximum may lag behind;
// kQuerySteps: so many steps of 16 channels of Q stay in registers, which spares shared memory reads;
// kPartRows: neighbouring keys of the cache that a tile is pieced together from, a block or a page;
// kRings: 1, the warpgroups read the same tiles, or kConsumers, each reads its own;
// kGathers: some tiles are gathered key by key;
// kReleaseLanes: of a warp, that arrive at a barrier for what it has read or told: 1 or all 32, for tools
// that do not follow the order of a warp's lanes and the one that arrives.
template <typename T_, int kHeadDim_, int kConsumers_, int kKeys_, int kStages_, bool kTurns_, int kSlack_,
          int kQuerySteps_, int kPartRows_ = kBlockRows, int kRings_ = 1, bool kGathers_ = false,
          int kReleaseLanes_ = 1>
struct PrefillConfig {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kConsumers = kConsumers_;
  static constexpr int kKeys = kKeys_;
  static constexpr int kStages = kStages_;
  static constexpr bool kTurns = kTurns_;
  static constexpr int kSlack = kSlack_;
  static constexpr int kQuerySteps = kQuerySteps_;
  static constexpr int kPartRows = kPartRows_;
  static constexpr int kRings = kRings_;
  static constexpr bool kGathers = kGathers_;
  static constexpr int kReleaseLanes = kReleaseLanes_;
  static constexpr int kParts = kKeys / kPartRows;
  static constexpr int kRowBlocks = kConsumers / kRings;  // query blocks of 64 rows an item
  static constexpr int kGroups = kHeadDim / kBoxChannels;
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroup;
  // 65536 registers a multiprocessor: the producer keeps what it needs, consumers share the rest.
  // Walking lists takes more.
  static constexpr int kProducerRegisters = kConsumers == 3           ? 32
                                            : kPartRows == kBlockRows ? 24
                                            : kGathers                ? (kHeadDim == 256 ? 72 : 88)
                                                                      : 56;
  static constexpr int kConsumerRegisters = kConsumers == 3 ? 160 : 252 - kProducerRegisters / 2;
  static_assert(kRings == 1 || (kRings == 2 && kConsumers == 2));
  static_assert(kConsumers == 2 || kPartRows == kBlockRows);
  static_assert(kRings == 1 || !kTurns);                    // who takes turns has as many tiles as the other
  static constexpr bool kListed = kPartRows != kBlockRows;  // tiles come from lists
  // Where keys and values lie in a stage: 8 rows of 64 channels, 1024 bytes, are together. Dense tiles are
  // (D / 64, keys / 8, 8, 64), as boxes of 64 channels leave them; of lists (keys / 8, D / 64, 8, 64), so
  // that one box holds all channels of a page.
  static constexpr int kEightRowsBytes = kListed ? kGroups * 1024 : 1024;  // to the next 8 rows
  static constexpr int kGroupBytes = kListed ? 1024 : kKeys * 128;         // to the next 64 channels
  // At a barrier of keys or values: of the leader, and of each lane that gathers.
  static constexpr int kFullArrivals = kGathers ? 33 : kReleaseLanes;
  static_assert(kReleaseLanes == 1 || (kListed && !kGathers));
};

struct PrefillArguments {
  const std::int32_t* table;            // (K, table_stride)
  const std::int32_t* block_positions;  // (query_blocks); dense
  std::int64_t table_stride;
  int tokens;         // T
  int length;         // S
  int heads;          // H
  int group;          // G
  int query_blocks;   // ceil(T / 64)
  int query_tiles;    // ceil(query_blocks / kConsumers)
  int items;          // H · query_tiles
  int section_heads;  // query heads that are taken together, so that their keys and values stay in
                      // L2
  int window;         // 0: none
  float scale;
  void* out;   // (T, H, D)
  float* lse;  // (T, H) or null
  std::uint32_t* counters;
};

struct PrefillMaps {
  CUtensorMap q;     // (T, H, D)
  CUtensorMap pool;  // (2 · slots, 64, D): a slot's keys, then its values
};

// The same pool for lists, in boxes of all channels: (pages, rows / 8, D / 64, 8, 64).
struct ListMaps : PrefillMaps {
  CUtensorMap blocks;  // four pages a box: (2 · slots, 8, D / 64, 8, 64)
  CUtensorMap pages;   // (8 · slots, 2, D / 64, 8, 64)
  CUtensorMap edges;   // 8 rows of a page from any row on: (1, 8 · slots, D / 64, 16, 64)
};

// The rows of an item: neighbouring query blocks of 64 of one head.
template <class C>
struct ItemRows {
  int head;                     // −1: there is no more work
  int token;                    // of the first row
  int end;                      // tokens from here on are no rows of this item
  int position[C::kRowBlocks];  // of the first row of each query block; −1: no such block
};

// Positions of the keys of a gathered tile.
template <class C, bool kGathers = C::kGathers>
struct GatheredKeys {
  int gathered;
  int position[C::kKeys];  // kAbsent: this row holds nothing
};
template <class C>
struct GatheredKeys<C, false> {};

// What lies in one stage of a ring, written by the producer. Where the last keys of a part do not exist, the
// part stands at the end of its rows, behind rows that hold nothing: `first`, the position that its first row
// would have, is a multiple of kPartRows everywhere else.
template <class C>
struct KeyTile : GatheredKeys<C> {
  static constexpr int kAbsent = 1 << 30;  // as `first`: no keys in this part
  ItemRows<C> rows;
  int last;  // 1: the item's last tile
  int top;   // of lists: the highest position; kAbsent where some row of the tile holds nothing
  int first[C::kParts];
};

// A producer, and the consumers that read what it brings.
template <class C>
struct PrefillRing {
  using T = typename C::T;
  alignas(1024) T q[C::kRowBlocks][kBlockRows * C::kHeadDim];  // groups of 64 channels: (D / 64, 64, 64)
  alignas(1024) T k[C::kStages][C::kKeys * C::kHeadDim];
  alignas(1024) T v[C::kStages][C::kKeys * C::kHeadDim];
  KeyTile<C> tiles[C::kStages];
  std::uint64_t q_full[C::kRowBlocks];
  std::uint64_t q_empty[C::kRowBlocks];
  std::uint64_t k_full[C::kStages];
  std::uint64_t k_empty[C::kStages];
  std::uint64_t v_full[C::kStages];
  std::uint64_t v_empty[C::kStages];
};

// Of lists: the item that the warp that brings keys has begun, for the one that brings values.
struct BegunItem {
  std::uint64_t full;
  std::uint64_t empty;
  int item;
};

template <class C>
struct PrefillShared {
  PrefillRing<C> rings[C::kRings];
  BegunItem begun[C::kRings];
};

// Place in the ring. A producer waits for parity ^ 1: a fresh barrier counts as released.
template <int kStages>
struct RingPlace {
  int stage = 0;
  std::uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

struct WorkItem {
  int head;
  int query_block;  // of the first warpgroup
};

// Within a section the query tiles go from last to first, which is longest to shortest, each for all heads.
template <class C>
__device__ __forceinline__ WorkItem decode_item(const PrefillArguments& p, int item) {
  const int section_items = p.section_heads * p.query_tiles;
  const int section = item / section_items;
  const int first_head = section * p.section_heads;
  const int heads = min(p.section_heads, p.heads - first_head);
  const int rest = item - section * section_items;
  const int tile = rest / heads;
  return {first_head + rest - tile * heads, (p.query_tiles - 1 - tile) * C::kConsumers};
}

// Query heads taken together: as many KV heads as fit half of L2 with their keys and values, at least one.
inline int section_heads(std::int64_t length, int head_dim, int heads, int kv_heads, std::int64_t l2_bytes) {
  const std::int64_t head_bytes = std::max<std::int64_t>(1, 2 * length * head_dim * 2);
  const std::int64_t fit = std::clamp<std::int64_t>(l2_bytes / 2 / head_bytes, 1, kv_heads);
  return static_cast<int>(fit) * (heads / kv_heads);
}

inline PrefillArguments prefill_arguments(const PrefillParams& p, int consumers, std::int64_t l2_bytes) {
  PrefillArguments a{};
  a.table = p.kv.table;
  a.block_positions = p.block_positions;
  a.table_stride = p.kv.table_stride;
  a.tokens = static_cast<int>(p.tokens);
  a.length = static_cast<int>(std::min(p.kv.length, p.kv.blocks * kBlockRows));
  a.heads = p.heads;
  a.group = p.heads / p.kv.kv_heads;
  a.query_blocks = static_cast<int>(ceil_div(p.tokens, kBlockRows));
  a.query_tiles = static_cast<int>(ceil_div(a.query_blocks, consumers));
  a.items = a.query_tiles * p.heads;
  a.section_heads = section_heads(a.length, p.kv.head_dim, p.heads, p.kv.kv_heads, l2_bytes);
  a.window = p.window;
  a.scale = p.scale;
  a.out = p.out;
  a.lse = p.lse;
  a.counters = p.counters;
  return a;
}

}  // namespace tessera::cuda
