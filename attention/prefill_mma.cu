// Dense prefill attention by mma.sync, for GPUs from sm_80 on: a CTA takes one query block of one head, four
// warps of 16 rows each. Keys of the next block and values of this one are on their way (cp.async) while the
// other is in use. Fragments of mma are those of wgmma, so masks, softmax and output are the same code.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/prefill_cuda.hpp"
#include "attention/prefill_rows.cuh"
#include "attention/prefill_softmax.cuh"
#include "attention/prefill_tile.cuh"
#include "attention/ptx/cp_async.cuh"
#include "attention/ptx/mma.cuh"
#include "kvcache/kv_view.hpp"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {
namespace {

// Tiles of 64 rows in shared memory: 16-byte pieces of a row stand at their index xor row % 8.
template <int kHeadDim>
__device__ __forceinline__ std::uint32_t piece_at(std::uint32_t tile, int row, int piece) {
  return tile + static_cast<std::uint32_t>(row * kHeadDim * 2 + ((piece ^ (row % 8)) * 16));
}

// rows: how many of the 64 exist; the others become zeros.
template <typename T, int kHeadDim>
__device__ __forceinline__ void copy_tile(std::uint32_t tile, const T* source, std::int64_t stride,
                                          int rows) {
  constexpr int kPieces = kHeadDim / 8;
#pragma unroll
  for (int i = 0; i < kBlockRows * kPieces / kWarpgroup; ++i) {
    const int at = i * kWarpgroup + static_cast<int>(threadIdx.x);
    const int row = at / kPieces;
    const int piece = at % kPieces;
    const bool exists = row < rows;
    ptx::copy_16_bytes(piece_at<kHeadDim>(tile, row, piece), source + (exists ? row * stride + piece * 8 : 0),
                       exists);
  }
}

// The last block at or before `block` that the table holds; below `low`: none.
__device__ __forceinline__ int held_at_or_before(const std::int32_t* row, int block, int low) {
  while (block >= low && __ldg(row + block) < 0) --block;
  return block;
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kWarpgroup)
    prefill_mma_kernel(const PrefillArguments p, const T* q, std::int64_t q_stride, const T* pool) {
  extern __shared__ __align__(128) unsigned char memory[];
  constexpr int kTile = kBlockRows * kHeadDim;
  const std::uint32_t q_tile = ptx::shared_address(memory);
  const std::uint32_t k_tile = q_tile + kTile * sizeof(T);
  const std::uint32_t v_tile = k_tile + kTile * sizeof(T);
  const int block = p.query_blocks - 1 - static_cast<int>(blockIdx.y);  // longest first
  const WorkItem work = {static_cast<int>(blockIdx.x), block};
  const int lane = threadIdx.x % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  const float scale_log2 = p.scale * 1.4426950408889634F;

  const int first_row = __ldg(p.block_positions + block);
  const int valid = min(kBlockRows, p.tokens - block * kBlockRows);
  const int last_key = min(first_row + valid, p.length) - 1;
  const int low_block = (p.window > 0 ? max(0, first_row - p.window + 1) : 0) / kBlockRows;
  const std::int32_t* table = p.table + (work.head / p.group) * p.table_stride;
  const int position[2] = {first_row + warp_row + lane / 4, first_row + warp_row + lane / 4 + 8};
  const int high[2] = {min(position[0], p.length - 1), min(position[1], p.length - 1)};
  const int low[2] = {p.window > 0 ? position[0] - p.window + 1 : 0,
                      p.window > 0 ? position[1] - p.window + 1 : 0};
  const auto copy_keys_or_values = [&](std::uint32_t tile, int key_block, int half) {
    const std::int64_t slot = __ldg(table + key_block);
    copy_tile<T, kHeadDim>(tile, pool + (2 * slot + half) * kTile, kHeadDim,
                           p.length - key_block * kBlockRows);
  };

  RowPair state = {{negative_infinity(), negative_infinity()}, {0, 0}};
  float out[kHeadDim / 2];
#pragma unroll
  for (float& value : out) value = 0;
  int current = held_at_or_before(table, last_key >= 0 ? last_key / kBlockRows : -1, low_block);
  copy_tile<T, kHeadDim>(q_tile,
                         q + static_cast<std::int64_t>(block) * kBlockRows * q_stride + work.head * kHeadDim,
                         q_stride, valid);
  if (current >= low_block) copy_keys_or_values(k_tile, current, 0);
  ptx::commit_copies();
  while (current >= low_block) {
    ptx::wait_copies<0>();
    __syncthreads();  // keys are here, and nobody reads the last values any more
    copy_keys_or_values(v_tile, current, 1);
    ptx::commit_copies();
    float scores[32];
#pragma unroll
    for (float& value : scores) value = 0;
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      std::uint32_t a[4];
      ptx::load_matrices(a, piece_at<kHeadDim>(q_tile, warp_row + lane % 16, 2 * step + lane / 16));
#pragma unroll
      for (int j = 0; j < 8; j += 2) {  // 16 keys
        std::uint32_t b[4];
        ptx::load_matrices(
            b, piece_at<kHeadDim>(k_tile, 8 * j + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
        ptx::MmaType<T>::multiply_add(reinterpret_cast<float(&)[4]>(scores[4 * j]), a, b[0], b[1]);
        ptx::MmaType<T>::multiply_add(reinterpret_cast<float(&)[4]>(scores[4 * j + 4]), a, b[2], b[3]);
      }
    }
    __syncthreads();  // nobody reads these keys any more
    const int next = held_at_or_before(table, current - 1, low_block);
    if (next >= low_block) copy_keys_or_values(k_tile, next, 0);
    ptx::commit_copies();
    mask_part<kBlockRows>(scores, current * kBlockRows, low, high);
    float factor[2];
    softmax_step<32>(scores, state, factor, scale_log2, 0.0F);
    std::uint32_t probabilities[16];
    pack_fragment<T>(scores, probabilities);
    scale_rows(out, factor);
    ptx::wait_copies<1>();
    __syncthreads();  // values are here
#pragma unroll
    for (int step = 0; step < kBlockRows / 16; ++step) {
      const std::uint32_t(&a)[4] = reinterpret_cast<const std::uint32_t(&)[4]>(probabilities[4 * step]);
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; j += 2) {  // 16 channels
        std::uint32_t b[4];
        ptx::load_matrices_transposed(b, piece_at<kHeadDim>(v_tile, 16 * step + lane % 16, j + lane / 16));
        ptx::MmaType<T>::multiply_add(reinterpret_cast<float(&)[4]>(out[4 * j]), a, b[0], b[1]);
        ptx::MmaType<T>::multiply_add(reinterpret_cast<float(&)[4]>(out[4 * j + 4]), a, b[2], b[3]);
      }
    }
    current = next;
  }
  ptx::wait_copies<0>();
  store_rows<T, kHeadDim>(out, state, work.head, block * kBlockRows, p.tokens, p);
}

template <typename T, int kHeadDim>
void launch_mma(const PrefillParams& p) {
  const PrefillArguments a = prefill_arguments(p, 1, 0);
  launch(prefill_mma_kernel<T, kHeadDim>,
         {.grid = dim3(static_cast<unsigned>(a.heads), static_cast<unsigned>(a.query_blocks)),
          .block = dim3(kWarpgroup),
          .shared_bytes = 3 * kBlockRows * kHeadDim * sizeof(T)},
         p.stream, a, static_cast<const T*>(p.q), p.q_row_stride, reinterpret_cast<const T*>(p.kv.slots));
}

template <typename T>
void mma_by_head_dim(const PrefillParams& p) {
  switch (p.kv.head_dim) {
    case 64:
      return launch_mma<T, 64>(p);
    case 128:
      return launch_mma<T, 128>(p);
    default:
      return launch_mma<T, 256>(p);
  }
}

}  // namespace

void prefill_attention_mma(const PrefillParams& p) {
  if (!check_prefill(p)) return;
  if (p.kv.dtype == DType::kBF16) {
    mma_by_head_dim<__nv_bfloat16>(p);
  } else {
    mma_by_head_dim<__half>(p);
  }
}

}  // namespace tessera::cuda
