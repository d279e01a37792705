// block_sparse (attention/block_select_cuda.hpp): one kernel for means of queries, one for those of keys, and
// one that scores some query blocks of a head against all key blocks before them and chooses: scores never
// leave the chip.
#include "attention/block_select_cuda.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "attention/block_select.cuh"
#include "runtime/core/cuda_check.hpp"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kPoolThreads = 128;
constexpr int kTileRows = 16;  // query blocks of a CTA, at most
constexpr int kKeyRow = 128;   // keys of a row fill whole steps of a warp, four a lane
constexpr int kBlockPages = kBlockTokens / kPageTokens;

struct SelectArguments {
  BlockSelectProblem problem;
  const float* q_means;  // (H, rows, D)
  const float* k_means;  // (K, D, k_stride)
  int k_stride;
  int tile_rows;
  std::int64_t budget;  // forced blocks inside
  std::int64_t* row_begin;
  BlockEntry* entries;
};

// Grid (rows, pairs of channels of all heads / threads).
template <typename T, typename Pair>
__global__ void __launch_bounds__(kPoolThreads)
    pool_queries_kernel(const BlockSelectProblem p, const T* q, std::int64_t stride, float* means) {
  const int pair = static_cast<int>(blockIdx.y) * kPoolThreads + static_cast<int>(threadIdx.x);
  if (2 * pair >= p.heads * p.head_dim) return;
  const std::int64_t first = blockIdx.x * p.edge;
  const int rows = static_cast<int>(min(p.edge, p.tokens - first));
  const T* source = q + first * stride + 2 * pair;
  const float2 mean = mean_of_rows<Pair>(rows, [&](int row) { return source + row * stride; });
  const int head = 2 * pair / p.head_dim;
  const int channel = 2 * pair % p.head_dim;
  *reinterpret_cast<float2*>(means + (head * p.rows() + blockIdx.x) * p.head_dim + channel) = mean;
}

// Grid (rows, KV heads); transposed, as the scores read them.
template <typename T, typename Pair>
__global__ void __launch_bounds__(kPoolThreads)
    pool_keys_kernel(const BlockSelectProblem p, const KvView kv, float* means, int stride) {
  const int channel = 2 * static_cast<int>(threadIdx.x);
  if (channel >= p.head_dim) return;
  const int head = static_cast<int>(blockIdx.y);
  const std::int64_t first = blockIdx.x * p.edge;
  const int rows = static_cast<int>(min(p.edge, p.tokens - first));
  const std::int64_t block = first / kBlockTokens;
  const T* halves[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::int64_t held = half * kBlockTokens < rows ? block + half : block;
    const std::int64_t slot = __ldg(kv.table + head * kv.table_stride + held);
    halves[half] = reinterpret_cast<const T*>(kv.slots + slot * kv.slot_bytes) + channel;
  }
  const float2 mean = mean_of_rows<Pair>(rows, [&](int row) {
    return (row < kBlockTokens ? halves[0] : halves[1]) + row % kBlockTokens * p.head_dim;
  });
  float* target = means + (static_cast<std::int64_t>(head) * p.head_dim + channel) * stride + blockIdx.x;
  target[0] = mean.x;
  target[stride] = mean.y;
}

// A key such that fewer than `keep` are above it and at least `keep` are not below it, or that exactly `keep`
// are not below. By one warp; keys behind `count` are 0, up to a whole step.
__device__ __forceinline__ std::uint32_t lowest_kept(const std::uint32_t* keys, int count, int keep) {
  std::uint32_t lowest = 0;
  for (std::uint32_t bit = 0x80000000U; bit != 0; bit >>= 1) {
    const std::uint32_t candidate = lowest | bit;
    int mine = 0;
#pragma unroll 4
    for (int i = 4 * static_cast<int>(threadIdx.x % 32); i < count; i += kKeyRow) {
      const uint4 four = *reinterpret_cast<const uint4*>(keys + i);
      mine += four.x >= candidate;
      mine += four.y >= candidate;
      mine += four.z >= candidate;
      mine += four.w >= candidate;
    }
    const int reached = __reduce_add_sync(0xFFFFFFFF, mine);
    if (reached >= keep) lowest = candidate;
    if (reached == keep) break;
  }
  return lowest;
}

// The list of one row, from the keys of blocks 0 … row in shared memory. By one warp.
__device__ __forceinline__ void choose_row(const SelectArguments& p, int head, int row,
                                           const std::uint32_t* keys) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int count = row + 1;
  const int keep = static_cast<int>(min(p.budget, static_cast<std::int64_t>(count)));
  const std::uint32_t lowest = keep < count ? lowest_kept(keys, count, keep) : 0;
  int above = 0;
  for (int i = lane; i < count; i += 32) above += keys[i] > lowest;
  int ties = keep - __reduce_add_sync(0xFFFFFFFF, above);  // to keep, from the first on

  const std::int64_t begin =
      head * entries_a_head(p.problem, p.budget) + entries_before(row, p.budget, p.problem.edge);
  if (lane == 0) p.row_begin[head * p.problem.rows() + row] = begin;
  BlockEntry* out = p.entries + begin;
  const int blocks = static_cast<int>(p.problem.edge / kBlockTokens);
  const std::int64_t last = min(p.problem.tokens, (row + 1) * p.problem.edge) - 1;  // query of the row
  for (int first = 0; first < count; first += 32) {
    const int i = first + lane;
    const std::uint32_t key = i < count ? keys[i] : 0;
    const bool equal = i < count && key == lowest;
    const unsigned equals = __ballot_sync(0xFFFFFFFF, equal);
    const unsigned before = (1U << lane) - 1;
    const bool kept = i < count && (key > lowest || (equal && __popc(equals & before) < ties));
    const unsigned taken = __ballot_sync(0xFFFFFFFF, kept);
    if (kept) {
      BlockEntry* place = out + __popc(taken & before) * blocks;
      for (int b = 0; b < blocks; ++b) {
        const std::int64_t block = static_cast<std::int64_t>(i) * blocks + b;
        const std::int64_t pages = last / kPageTokens - block * kBlockPages + 1;
        if (pages <= 0) continue;
        const unsigned mask = (1U << min(pages, static_cast<std::int64_t>(kBlockPages))) - 1;
        place[b].bits = static_cast<std::uint32_t>(block) << 4 | mask;
      }
    }
    ties -= __popc(equals);
    out += __popc(taken) * blocks;
  }
}

// Grid (tiles of query blocks, long rows first, heads). Shared memory: means of the tile's queries (D, 16),
// then keys of the scores (tile_rows, blocks of the last row in whole steps).
__global__ void __launch_bounds__(kThreads, 1) select_kernel(const SelectArguments p) {
  extern __shared__ __align__(16) float memory[];
  const BlockSelectProblem& problem = p.problem;
  const int rows = static_cast<int>(problem.rows());
  const int head = static_cast<int>(blockIdx.y);
  const int first = (static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x)) * p.tile_rows;
  const int tile_rows = min(p.tile_rows, rows - first);
  const int visible = first + tile_rows;
  const int key_row = (visible + kKeyRow - 1) & -kKeyRow;
  float* queries = memory;
  auto* keys = reinterpret_cast<std::uint32_t*>(memory + problem.head_dim * kTileRows);
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < problem.head_dim * kTileRows; i += kThreads) {
    const int row = i / problem.head_dim;
    const int channel = i % problem.head_dim;
    const std::int64_t from = (static_cast<std::int64_t>(head) * rows + first + row) * problem.head_dim;
    queries[channel * kTileRows + row] = row < tile_rows ? p.q_means[from + channel] : 0.0F;
  }
  __syncthreads();
  const int kv_head = head / (problem.heads / problem.kv_heads);
  const float* k_means = p.k_means + static_cast<std::int64_t>(kv_head) * problem.head_dim * p.k_stride;
  constexpr int kColumns = 2;
  const int warp_first = thread & -32;
  for (int begin = 0; begin + warp_first < key_row; begin += kColumns * kThreads) {
    float scores[kColumns][kTileRows] = {};
    const float* column = k_means + begin + thread;  // k_stride covers what is read beyond `visible`
#pragma unroll 8
    for (int channel = 0; channel < problem.head_dim; ++channel) {
      float key[kColumns];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) key[c] = __ldg(column + c * kThreads);
      column += p.k_stride;
#pragma unroll
      for (int row = 0; row < kTileRows; row += 4) {
        const float4 q = *reinterpret_cast<const float4*>(queries + channel * kTileRows + row);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          scores[c][row] = __fmaf_rn(q.x, key[c], scores[c][row]);
          scores[c][row + 1] = __fmaf_rn(q.y, key[c], scores[c][row + 1]);
          scores[c][row + 2] = __fmaf_rn(q.z, key[c], scores[c][row + 2]);
          scores[c][row + 3] = __fmaf_rn(q.w, key[c], scores[c][row + 3]);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int block = begin + c * kThreads + thread;
      if (block >= key_row) continue;
#pragma unroll
      for (int row = 0; row < kTileRows; ++row) {
        if (row >= tile_rows) break;
        const bool forced = block == 0 || block == first + row || block == first + row - 1;
        const std::uint32_t key = forced ? 0xFFFFFFFFU : ordered(scores[c][row]);
        keys[row * key_row + block] = block <= first + row ? key : 0;
      }
    }
  }
  __syncthreads();
  for (int row = thread / 32; row < tile_rows; row += kWarps) {
    choose_row(p, head, first + row, keys + row * key_row);
  }
  if (blockIdx.x == 0 && head == problem.heads - 1 && thread == 0) {
    p.row_begin[static_cast<std::int64_t>(problem.heads) * rows] =
        problem.heads * entries_a_head(problem, p.budget);
  }
}

// Columns of transposed key means: the select kernel reads whole steps.
std::int64_t key_stride(const BlockSelectProblem& problem) {
  return ceil_div(problem.rows(), 2 * kThreads) * 2 * kThreads;
}

template <typename T, typename Pair>
void pool(const DeviceBlockSelectParams& p, float* q_means, float* k_means) {
  const BlockSelectProblem& problem = p.problem;
  const auto rows = static_cast<unsigned>(problem.rows());
  const std::int64_t pairs = static_cast<std::int64_t>(problem.heads) * problem.head_dim / 2;
  launch(pool_queries_kernel<T, Pair>,
         {.grid = dim3(rows, static_cast<unsigned>(ceil_div(pairs, kPoolThreads))), .block = kPoolThreads},
         p.stream, problem, static_cast<const T*>(p.q), p.q_row_stride, q_means);
  launch(pool_keys_kernel<T, Pair>,
         {.grid = dim3(rows, static_cast<unsigned>(problem.kv_heads)), .block = kPoolThreads}, p.stream,
         problem, p.kv, k_means, static_cast<int>(key_stride(problem)));
}

void check(const DeviceBlockSelectParams& p) {
  const BlockSelectProblem& problem = p.problem;
  constexpr std::int64_t kMostTokens = 1 << 29;
  TESSERA_CHECK(problem.tokens >= 0 && problem.tokens <= kMostTokens);
  const std::int64_t edge = problem.edge;
  TESSERA_CHECK(edge == kPageTokens || edge == 2 * kPageTokens || edge == kBlockTokens ||
                edge == 2 * kBlockTokens);
  TESSERA_CHECK(problem.head_dim == 64 || problem.head_dim == 128 || problem.head_dim == 256);
  TESSERA_CHECK(problem.kv_heads > 0 && problem.heads % problem.kv_heads == 0);
  TESSERA_CHECK(p.kv.dtype == DType::kBF16 || p.kv.dtype == DType::kF16);
  TESSERA_CHECK(p.kv.head_dim == problem.head_dim && p.kv.kv_heads == problem.kv_heads);
  TESSERA_CHECK(p.kv.rows_of_head == nullptr && p.kv.length == problem.tokens);
  TESSERA_CHECK(p.q_row_stride % 2 == 0);
}

}  // namespace

std::int64_t block_list_entries(const BlockSelectProblem& problem) {
  return problem.heads * entries_a_head(problem, kept_blocks(problem));
}

std::size_t block_select_workspace(const BlockSelectProblem& problem) {
  if (problem.edge < kBlockTokens) return small_block_workspace(problem);
  const std::int64_t floats = (problem.heads * problem.rows() + problem.kv_heads * key_stride(problem)) *
                              static_cast<std::int64_t>(problem.head_dim);
  return static_cast<std::size_t>(floats) * sizeof(float);
}

void select_blocks_on_device(const DeviceBlockSelectParams& p) {
  check(p);
  const BlockSelectProblem& problem = p.problem;
  if (problem.tokens == 0 || problem.heads == 0) return;
  if (problem.edge < kBlockTokens) return select_small_blocks(p);
  auto* q_means = static_cast<float*>(p.workspace);
  float* k_means = q_means + problem.heads * problem.rows() * problem.head_dim;
  if (p.kv.dtype == DType::kBF16) {
    pool<__nv_bfloat16, __nv_bfloat162>(p, q_means, k_means);
  } else {
    pool<__half, __half2>(p, q_means, k_means);
  }
  // As many rows as fit: up to 2048 blocks all 16.
  constexpr std::int64_t kMostShared = 200 * 1024;
  const std::int64_t queries = static_cast<std::int64_t>(problem.head_dim) * kTileRows * 4;
  const std::int64_t key_row_bytes = 4 * ceil_div(problem.rows(), kKeyRow) * kKeyRow;
  const std::int64_t tile_rows =
      std::clamp<std::int64_t>((kMostShared - queries) / key_row_bytes, 0, kTileRows);
  if (tile_rows == 0) {
    throw ResourceError(
        "block_sparse on the GPU: {} blocks a row do not fit on the chip; choose a larger edge",
        problem.rows());
  }
  SelectArguments a{problem,
                    q_means,
                    k_means,
                    static_cast<int>(key_stride(problem)),
                    static_cast<int>(tile_rows),
                    kept_blocks(problem),
                    p.row_begin,
                    p.entries};
  launch(select_kernel,
         {.grid = dim3(static_cast<unsigned>(ceil_div(problem.rows(), tile_rows)),
                       static_cast<unsigned>(problem.heads)),
          .block = kThreads,
          .shared_bytes = static_cast<std::size_t>(queries + tile_rows * key_row_bytes)},
         p.stream, a);
}

}  // namespace tessera::cuda
