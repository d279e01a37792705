// A consumer warpgroup of the prefill kernels: products, masks and softmax of one query block, tile by tile,
// and its rows of the output.
#pragma once

#include <cstdint>

#include "attention/prefill_rows.cuh"
#include "attention/prefill_softmax.cuh"
#include "attention/prefill_tile.cuh"
#include "attention/ptx/mbarrier.cuh"
#include "attention/ptx/shared_address.cuh"
#include "attention/ptx/warpgroup.cuh"
#include "attention/ptx/wgmma.cuh"

namespace tessera::cuda {

// Fragments of Q that stay in registers for an item.
template <class C>
struct QueryFragments {
  std::uint32_t words[C::kQuerySteps == 0 ? 1 : C::kQuerySteps][4];
  __device__ __forceinline__ void read(std::uint32_t address) {
#pragma unroll
    for (int step = 0; step < C::kQuerySteps; ++step) {
      ptx::load_fragment(words[step], address + step / 4 * kBlockRows * 128, step % 4);
    }
  }
};

// scores (64, kKeys) = Q Kᵀ
template <class C>
__device__ __forceinline__ void issue_scores(float (&scores)[C::kKeys / 2],
                                             const QueryFragments<C>& fragments, std::uint64_t q,
                                             std::uint64_t k) {
#pragma unroll
  for (int step = 0; step < C::kHeadDim / 16; ++step) {
    const std::uint32_t inside = step % 4 * 32;
    const std::uint64_t k_step = k + ((step / 4 * C::kGroupBytes + inside) >> 4);
    if (step < C::kQuerySteps) {
      ptx::wgmma_rs<typename C::T, C::kKeys, false>(scores, fragments.words[step < C::kQuerySteps ? step : 0],
                                                    k_step, step != 0);
    } else {
      ptx::wgmma_ss<typename C::T, C::kKeys>(scores, q + ((step / 4 * kBlockRows * 128 + inside) >> 4),
                                             k_step, step != 0);
    }
  }
  ptx::wgmma_commit();
}

// out (64, D) += P V
template <class C>
__device__ __forceinline__ void issue_output(float (&out)[C::kHeadDim / 2],
                                             const std::uint32_t (&probabilities)[C::kKeys / 4],
                                             std::uint64_t v) {
#pragma unroll
  for (int step = 0; step < C::kKeys / 16; ++step) {
    ptx::wgmma_rs<typename C::T, C::kHeadDim, true>(out, probabilities + 4 * step,
                                                    v + ((step * 2 * C::kEightRowsBytes) >> 4), 1);
  }
  ptx::wgmma_commit();
}

// What a consumer takes over from a tile's head, before the stage can be reused.
template <class C>
struct TileKeys {
  int first[C::kListed ? 1 : C::kParts];  // dense
  int top = 0;                            // of lists
  bool gathered = false;
  __device__ __forceinline__ void read(const KeyTile<C>& tile) {
    if constexpr (C::kGathers) gathered = tile.gathered != 0;
    if constexpr (C::kListed) {
      top = tile.top;
    } else {
#pragma unroll
      for (int part = 0; part < C::kParts; ++part) first[part] = tile.first[part];
    }
  }
};

// Between the arrival of what threads copied into a tile and the products that read it.
template <class C>
__device__ __forceinline__ void fence_gathered(bool gathered) {
  if (C::kGathers && gathered) ptx::fence_async_proxy();
}

template <class C>
__device__ __forceinline__ void mask_columns(float (&scores)[C::kKeys / 2], const KeyTile<C>& tile,
                                             const int (&high)[2]) {
  const int* const column = tile.position + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int j = 0; j < C::kKeys / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (column[8 * j + e % 2] > high[e / 2]) scores[4 * j + e] = negative_infinity();
    }
  }
}

// A tile of pages of a list, some of which some row of the query block does not see.
template <class C>
__device__ __forceinline__ void mask_pages(float (&scores)[C::kKeys / 2], const KeyTile<C>& tile,
                                           const int (&high)[2]) {
#pragma unroll
  for (int part = 0; part < C::kParts; ++part) {
    const int first = tile.first[part];
    const int begin = (first + C::kPartRows - 1) & -C::kPartRows;  // rows before this position hold nothing
    const int from[2] = {begin, begin};
    mask_part<C::kPartRows>(scores + C::kPartRows / 2 * part, first, from, high);
  }
}

// Of lists: most tiles need no mask, which one comparison tells. The others are looked at again, so this
// comes before the tile's stage is released. all_to: the last position that every row of the query block
// sees.
template <class C>
__device__ __forceinline__ void mask_listed(float (&scores)[C::kKeys / 2], const KeyTile<C>& tile,
                                            const TileKeys<C>& keys, int all_to, const int (&high)[2]) {
  if constexpr (C::kListed) {
    if (keys.top <= all_to) return;
    bool columns = false;
    if constexpr (C::kGathers) {
      columns = keys.gathered;
      if (columns) mask_columns<C>(scores, tile, high);
    }
    if (!columns) mask_pages<C>(scores, tile, high);
    __syncwarp();
  }
}

// Of dense items.
template <class C>
__device__ __forceinline__ void mask_tile(float (&scores)[C::kKeys / 2], const TileKeys<C>& keys, int rows,
                                          const int (&low)[2], const int (&high)[2],
                                          const PrefillArguments& p) {
  // What every row of the query block sees needs no mask.
  const int all_from = p.window > 0 ? rows + kBlockRows - p.window : 0;
  const int all_to = min(rows, p.length - 1);
#pragma unroll
  for (int part = 0; part < C::kParts; ++part) {
    const int first = keys.first[part];
    const int begin = (first + C::kPartRows - 1) & -C::kPartRows;  // rows before this position hold nothing
    if (first + C::kPartRows - 1 <= all_to && first >= all_from && first == begin) continue;
    const int from[2] = {max(low[0], begin), max(low[1], begin)};
    mask_part<C::kPartRows>(scores + C::kPartRows / 2 * part, first, from, high);
  }
}

// row_block: of the ring's items.
template <class C>
__device__ __forceinline__ void consume(const PrefillArguments& p, PrefillRing<C>& s, int row_block) {
  constexpr int kTurn = 1;  // named barriers from here on, one a warpgroup: all are of one ring
  const bool warp_leader = threadIdx.x % 32 == 0;
  const float scale_log2 = p.scale * 1.4426950408889634F;
  const int row = threadIdx.x % kWarpgroup / 32 * 16 + threadIdx.x % 32 / 4;
  const std::uint64_t q_operand = ptx::swizzled_descriptor(ptx::shared_address(s.q[row_block]), 0);
  const std::uint32_t k_address = ptx::shared_address(s.k);
  const std::uint32_t v_address = ptx::shared_address(s.v);
  constexpr std::uint32_t kStageBytes = C::kKeys * C::kHeadDim * sizeof(typename C::T);
  const auto k_operand = [&](int stage) {
    return ptx::swizzled_descriptor(k_address + stage * kStageBytes, 0, C::kEightRowsBytes);
  };
  const auto v_operand = [&](int stage) {
    return ptx::swizzled_descriptor(v_address + stage * kStageBytes, C::kGroupBytes, C::kEightRowsBytes);
  };
  const auto release = [&](std::uint64_t* barrier) {
    if (warp_leader) ptx::barrier_arrive(barrier);
  };

  if constexpr (C::kTurns) {
    if (row_block == C::kConsumers - 1) ptx::named_barrier_arrive(kTurn, 2 * kWarpgroup);
  }
  RingPlace<C::kStages> place;
  std::uint32_t q_parity = 0;
  float scores[C::kKeys / 2];
  float out[C::kHeadDim / 2];
  std::uint32_t probabilities[C::kKeys / 4];
  while (true) {
    ptx::barrier_wait(&s.k_full[place.stage], place.parity);
    const KeyTile<C>& first_tile = s.tiles[place.stage];
    const int head = first_tile.rows.head;
    if (head < 0) break;
    const int token = first_tile.rows.token + row_block * kBlockRows;
    const int end = first_tile.rows.end;
    const int rows = first_tile.rows.position[row_block];
    bool last = first_tile.last != 0;
    TileKeys<C> keys;
    keys.read(first_tile);
    // Positions that this thread's two rows see. A query block that is not there sees none.
    const int position[2] = {rows + row, rows + row + 8};
    const int high[2] = {rows < 0 ? -1 : min(position[0], p.length - 1),
                         rows < 0 ? -1 : min(position[1], p.length - 1)};
    const int all_to = min(rows, p.length - 1);
    const int low[2] = {p.window > 0 ? position[0] - p.window + 1 : 0,
                        p.window > 0 ? position[1] - p.window + 1 : 0};

    ptx::barrier_wait(&s.q_full[row_block], q_parity);
    QueryFragments<C> fragments;
    fragments.read(ptx::shared_address(s.q[row_block]));
    constexpr bool kQueriesTaken = C::kQuerySteps * 16 == C::kHeadDim;
    if constexpr (kQueriesTaken) {
      __syncwarp();
      release(&s.q_empty[row_block]);
    }
    fence_gathered<C>(keys.gathered);
    ptx::wgmma_fence();
    issue_scores<C>(scores, fragments, q_operand, k_operand(place.stage));
    ptx::wgmma_wait<0>();
    ptx::fence_registers(scores);
    __syncwarp();
    mask_listed<C>(scores, s.tiles[place.stage], keys, all_to, high);
    release(&s.k_empty[place.stage]);
    if (last && !kQueriesTaken) release(&s.q_empty[row_block]);
    if constexpr (!C::kListed) mask_tile<C>(scores, keys, rows, low, high, p);
    RowPair state = {{negative_infinity(), negative_infinity()}, {0, 0}};
    float factor[2];
    softmax_step<C::kKeys / 2>(scores, state, factor, scale_log2, 0.0F);
    pack_fragment<typename C::T>(scores, probabilities);
#pragma unroll
    for (int i = 0; i < C::kHeadDim / 2; ++i) out[i] = 0;

    while (!last) {
      const RingPlace<C::kStages> before = place;
      place.advance();
      const bool values_gathered = keys.gathered;
      ptx::barrier_wait(&s.k_full[place.stage], place.parity);
      last = s.tiles[place.stage].last != 0;
      keys.read(s.tiles[place.stage]);
      if constexpr (C::kTurns) ptx::named_barrier_wait(kTurn + row_block, 2 * kWarpgroup);
      fence_gathered<C>(keys.gathered);
      ptx::wgmma_fence();
      issue_scores<C>(scores, fragments, q_operand, k_operand(place.stage));
      ptx::barrier_wait(&s.v_full[before.stage], before.parity);
      fence_gathered<C>(values_gathered);
      issue_output<C>(out, probabilities, v_operand(before.stage));
      if constexpr (C::kTurns) {
        ptx::named_barrier_arrive(kTurn + (row_block + 1) % C::kConsumers, 2 * kWarpgroup);
      }
      ptx::wgmma_wait<1>();
      ptx::fence_registers(scores);
      __syncwarp();
      mask_listed<C>(scores, s.tiles[place.stage], keys, all_to, high);
      release(&s.k_empty[place.stage]);
      if (last && !kQueriesTaken) release(&s.q_empty[row_block]);
      if constexpr (!C::kListed) mask_tile<C>(scores, keys, rows, low, high, p);
      softmax_step<C::kKeys / 2>(scores, state, factor, scale_log2, C::kSlack);
      // The assembler would schedule the wait in front of the softmax, which is to run beside the products. A
      // store that needs all exponentials holds it back; it never happens, since sums are not negative.
      if (state.sum[0] + state.sum[1] < 0) release(&s.v_empty[before.stage]);
      ptx::wgmma_wait<0>();
      ptx::fence_registers(out);
      ptx::fence_registers(probabilities);
      release(&s.v_empty[before.stage]);
      pack_fragment<typename C::T>(scores, probabilities);
      if (C::kSlack == 0 || __any_sync(0xFFFFFFFF, factor[0] != 1.0F || factor[1] != 1.0F)) {
        scale_rows(out, factor);
      }
    }
    ptx::barrier_wait(&s.v_full[place.stage], place.parity);
    fence_gathered<C>(keys.gathered);
    ptx::wgmma_fence();
    issue_output<C>(out, probabilities, v_operand(place.stage));
    ptx::wgmma_wait<0>();
    ptx::fence_registers(out);
    release(&s.v_empty[place.stage]);
    place.advance();
    q_parity ^= 1;
    store_rows<typename C::T, C::kHeadDim>(out, state, head, token, end, p);
  }
}

}  // namespace tessera::cuda
