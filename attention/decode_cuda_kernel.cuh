// The kernel that attends (attention/decode_cuda.hpp).
//
// Scores are computed transposed, Sᵀ (16 keys × 8 heads) = K Qᵀ and Oᵀ (D × 8 heads) += Vᵀ Pᵀ, so that the
// heads of a group lie in the 8 columns of mma.m16n8k16: a group of 8 fills the tile, and a page of 16 keys
// is its other edge. Each warp runs by itself over its pages, with its own ring of stages that cp.async
// fills; warps meet only at the end of a list.
#pragma once

#include "attention/decode_cuda_warp.cuh"
#include "attention/ptx/cp_async.cuh"
#include "runtime/core/cuda_overlap.cuh"

namespace tessera::cuda {

template <class T, int kHeadDim, int kTiles, int kWarps, int kStages>
struct DecodeShape {
  static constexpr int kRowBytes = kHeadDim * 2;
  static constexpr int kRowChunks = kRowBytes / 16;
  static constexpr int kHalfBytes = kPageTokens * kRowBytes;  // the keys of a page, or its values
  static constexpr int kPageBytes = 2 * kHalfBytes;
  static constexpr int kHeads = kTiles * kHeadTile;
  static constexpr int kMergeStride = kHeadDim + 4;  // floats; spreads a fragment's heads over the banks
  static constexpr int kRingBytes = kWarps * kStages * kPageBytes;
  static constexpr int kMergeBytes = kWarps * kHeads * kMergeStride * 4;
  static constexpr int kSharedBytes = kRingBytes > kMergeBytes ? kRingBytes : kMergeBytes;
  static constexpr int kCtasOfSm = 2 * (kSharedBytes + 4096) <= 227 * 1024 ? 2 : 1;
};

template <class T, int kHeadDim, int kTiles, int kWarps, int kStages>
__global__ __launch_bounds__(
    kWarps * 32,
    (DecodeShape<T, kHeadDim, kTiles, kWarps, kStages>::kCtasOfSm)) void attend_kernel(const __grid_constant__
                                                                                           DecodeArgs p) {
  using Shape = DecodeShape<T, kHeadDim, kTiles, kWarps, kStages>;
  using Warp = WarpAttention<T, kHeadDim, kTiles>;
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ int visible[kWarps][kStages];  // first | last << 8 of the page in each stage
  __shared__ MaxSum of_warp[kWarps][Shape::kHeads];

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int g = lane / 4;
  const int t = lane % 4;
  const int heads = p.problem.heads_a_list();
  std::byte* ring = shared + warp * kStages * Shape::kPageBytes;
  const std::uint32_t ring_address = ptx::shared_address(ring);

  bool waited = false;
  const auto wait = [&] {
    if (waited) return;
    wait_for_previous();
    let_next_start();
    waited = true;
  };
  if (!p.settled) wait();
  const int cta = static_cast<int>(blockIdx.x);
  const CtaStart start = p.plan.starts[cta];
  int rest = start.rest;

  Warp state;
  for (int list = start.list; rest > 0; ++list) {
    const bool later = list != start.list;
    const int first_page = later ? 0 : start.first;
    const int list_size = later ? p.plan.begin[list + 1] - p.plan.begin[list] : start.list_size;
    const int last_page = min(list_size, first_page + rest);
    if (last_page == first_page) continue;  // an empty list
    rest -= last_page - first_page;

    const ListPages keys = list_pages(p.problem, p.reach, list);
    PageCursor<kWarps> cursor(p, list, keys, first_page + warp, last_page);
    if (p.reach.pages != nullptr) {
      if (!waited) cursor.warm_table();
      wait();
      cursor.read_list(list);
    }
    int issued = 0;
    const auto issue = [&](int stage) {
      std::uint32_t place;
      int first;
      int last;
      bool newest;
      if (cursor.next(place, first, last, newest)) {
        if (newest) wait();
        const std::byte* source = p.slots + static_cast<std::size_t>(place / kPagesOfBlock) * p.slot_bytes +
                                  place % kPagesOfBlock * Shape::kHalfBytes;
        const std::uint32_t target = ring_address + stage * Shape::kPageBytes;
#pragma unroll
        for (int i = 0; i < Shape::kHalfBytes / 512; ++i) {
          const int chunk = i * 32 + lane;
          const int row = chunk / Shape::kRowChunks;
          const int column = chunk % Shape::kRowChunks;
          const std::uint32_t offset = row * Shape::kRowBytes + ((column ^ (row & 7)) << 4);
          const bool seen = row >= first && row < last;
          ptx::copy_16_bytes(target + offset, source + chunk * 16, seen);
          ptx::copy_16_bytes(target + Shape::kHalfBytes + offset,
                             source + kBlockTokens * Shape::kRowBytes + chunk * 16, seen);
        }
        if (lane == 0) visible[warp][stage] = first | last << 8;
        ++issued;
      }
      ptx::commit_copies();
    };

#pragma unroll 1
    for (int stage = 0; stage < kStages - 1; ++stage) issue(stage);
    wait();
    state.load_query(reinterpret_cast<const T*>(p.q) + static_cast<std::size_t>(list) * heads * kHeadDim,
                     heads);
    state.clear();
    int stage = 0;
    for (int done = 0; done < issued; ++done) {
      ptx::wait_copies<kStages - 2>();
      __syncwarp();
      issue(stage == 0 ? kStages - 1 : stage - 1);  // the stage that was read last
      const int rows = visible[warp][stage];
      state.add_page(ring_address + stage * Shape::kPageBytes, rows & 0xff, rows >> 8, p.scale_log2);
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }
    ptx::wait_copies<0>();
    state.reduce_sums();
    if (g == 0) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          of_warp[warp][tile * kHeadTile + 2 * t + i] = {state.maximum[tile][i], state.sum[tile][i]};
        }
      }
    }
    __syncthreads();  // all rings are read; from here they hold the outputs of the warps
    float* outs = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int head = tile * kHeadTile + 2 * t + i;
        float highest = -INFINITY;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) highest = fmaxf(highest, of_warp[w][head].maximum);
        const float weight = exp2_fast(state.maximum[tile][i] - finite_maximum(highest));
        float* out = outs + (warp * Shape::kHeads + head) * Shape::kMergeStride + g;
#pragma unroll
        for (int step = 0; step < Warp::kSteps; ++step) {
          out[step * 16] = state.out[tile][step][i] * weight;
          out[step * 16 + 8] = state.out[tile][step][i + 2] * weight;
        }
      }
    }
    __syncthreads();
    const bool whole = first_page == 0 && last_page == list_size;  // no other CTA has a share of the list
    constexpr int kQuads = kHeadDim / 4;
    for (int i = static_cast<int>(threadIdx.x); i < heads * kQuads; i += kWarps * 32) {
      const int head = i / kQuads;
      const int quad = i % kQuads;
      MaxSum ml = {-INFINITY, 0};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) ml.maximum = fmaxf(ml.maximum, of_warp[w][head].maximum);
      float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float4 one = *reinterpret_cast<const float4*>(
            outs + (w * Shape::kHeads + head) * Shape::kMergeStride + quad * 4);
        ml.sum += of_warp[w][head].sum * exp2_fast(of_warp[w][head].maximum - finite_maximum(ml.maximum));
        total.x += one.x;
        total.y += one.y;
        total.z += one.z;
        total.w += one.w;
      }
      const std::size_t row = static_cast<std::size_t>(whole ? list : list + cta) * heads + head;
      if (whole) {
        const float factor = ml.sum == 0 ? 0.0f : 1.0f / ml.sum;
        total = make_float4(total.x * factor, total.y * factor, total.z * factor, total.w * factor);
        store_out<T>(p, row * kHeadDim + quad * 4, total);
        if (quad == 0 && p.lse != nullptr) p.lse[row] = natural_lse(ml);
      } else {
        *reinterpret_cast<float4*>(p.partial_out + row * kHeadDim + quad * 4) = total;
        if (quad == 0) p.partial_ml[row] = ml;
      }
    }
    __syncthreads();  // the rings may be filled again
  }
  wait();
}

}  // namespace tessera::cuda
