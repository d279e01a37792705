// block_sparse for blocks of 16 and 32 tokens (block_select_cuda.hpp): rows are too long, and too many, to
// stay on the chip from score to choice. So some query blocks of all heads at a time: one kernel scores them
// by mma.sync, one CTA a row then chooses. Means are fp32, as on the CPU, and enter the products as two bf16
// parts; of their four products the smallest is left out. Every score is the sum of the same numbers in the
// same order, whatever the chunk.
#include <algorithm>

#include "attention/block_select.cuh"
#include "attention/ptx/mma.cuh"
#include "attention/ptx/shared_address.cuh"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {
namespace {

constexpr int kPoolThreads = 128;
constexpr int kScoreWarps = 8;
constexpr int kScoreThreads = 32 * kScoreWarps;
constexpr int kScoreRows = 16 * kScoreWarps;
constexpr int kScoreKeys = 128;
constexpr int kChooseThreads = 256;
constexpr int kChooseWarps = kChooseThreads / 32;
constexpr std::int64_t kChunkBytes = 128 << 20;  // of scores
constexpr int kSmallBlockPages = kBlockTokens / kPageTokens;

using Element = __nv_bfloat16;
using Pair = __nv_bfloat162;

// (heads, rows, D) each
struct SplitMeans {
  Element* high;
  Element* low;
};

struct SmallSelectArguments {
  BlockSelectProblem problem;
  SplitMeans q;
  SplitMeans k;
  std::uint32_t* keys;  // (H, chunk_rows, key_stride) scores in the order of unsigned numbers
  std::int64_t key_stride;
  std::int64_t first_row;  // of the chunk
  std::int64_t chunk_rows;
  std::int64_t budget;
  std::int64_t* row_begin;
  BlockEntry* entries;
};

__device__ __forceinline__ void store_mean(const SplitMeans& means, std::int64_t at, float2 mean) {
  const Pair high = __floats2bfloat162_rn(mean.x, mean.y);
  const float2 back = __bfloat1622float2(high);
  *reinterpret_cast<Pair*>(means.high + at) = high;
  *reinterpret_cast<Pair*>(means.low + at) = __floats2bfloat162_rn(mean.x - back.x, mean.y - back.y);
}

// Grid (rows, pairs of channels of all heads / threads).
template <typename T, typename TPair>
__global__ void __launch_bounds__(kPoolThreads)
    pool_small_queries_kernel(const BlockSelectProblem p, const T* q, std::int64_t stride, SplitMeans means) {
  const int pair = static_cast<int>(blockIdx.y) * kPoolThreads + static_cast<int>(threadIdx.x);
  if (2 * pair >= p.heads * p.head_dim) return;
  const std::int64_t first = blockIdx.x * p.edge;
  const int rows = static_cast<int>(min(p.edge, p.tokens - first));
  const T* source = q + first * stride + 2 * pair;
  const float2 mean = mean_of_rows<TPair>(rows, [&](int row) { return source + row * stride; });
  const int head = 2 * pair / p.head_dim;
  store_mean(means, (head * p.rows() + blockIdx.x) * p.head_dim + 2 * pair % p.head_dim, mean);
}

// Grid (rows, KV heads).
template <typename T, typename TPair>
__global__ void __launch_bounds__(kPoolThreads)
    pool_small_keys_kernel(const BlockSelectProblem p, const KvView kv, SplitMeans means) {
  const int channel = 2 * static_cast<int>(threadIdx.x);
  if (channel >= p.head_dim) return;
  const int head = static_cast<int>(blockIdx.y);
  const std::int64_t first = blockIdx.x * p.edge;
  const int rows = static_cast<int>(min(p.edge, p.tokens - first));
  const std::int64_t slot = __ldg(kv.table + head * kv.table_stride + first / kBlockTokens);
  const T* source = reinterpret_cast<const T*>(kv.slots + slot * kv.slot_bytes) +
                    first % kBlockTokens * p.head_dim + channel;
  const float2 mean = mean_of_rows<TPair>(rows, [&](int row) { return source + row * p.head_dim; });
  store_mean(means, (head * p.rows() + blockIdx.x) * p.head_dim + channel, mean);
}

__device__ __forceinline__ uint4 load_means(const Element* address) {
  return __ldg(reinterpret_cast<const uint4*>(address));
}

// What a lane leaves in shared memory for itself. The compiler does not look through these.
__device__ __forceinline__ void store_words(uint4* target, std::uint32_t a, std::uint32_t b, std::uint32_t c,
                                            std::uint32_t d) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};\n" ::"r"(ptx::shared_address(target)), "r"(a),
               "r"(b), "r"(c), "r"(d)
               : "memory");
}
__device__ __forceinline__ void load_words(std::uint32_t (&words)[4], const uint4* source) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(ptx::shared_address(source))
               : "memory");
}

// Grid (tiles of keys, tiles of rows of the chunk, heads). A warp has 16 rows in registers and goes through
// the keys of the tile, which its CTA's warps find in L1. Channels in the order of block_prefill_kernel.cuh.
template <int kHeadDim>
__global__ void __launch_bounds__(kScoreThreads) score_small_kernel(const SmallSelectArguments p) {
  using Mma = ptx::MmaType<Element>;
  constexpr int kGroups = kHeadDim / 32;
  const auto rows = static_cast<int>(p.problem.rows());
  const int head = static_cast<int>(blockIdx.z);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int g = lane / 4;
  const int t = lane % 4;
  const int tile = static_cast<int>(blockIdx.y) * kScoreRows + static_cast<int>(threadIdx.x) / 32 * 16;
  const int first = static_cast<int>(p.first_row) + tile;  // row
  const int first_key = static_cast<int>(blockIdx.x) * kScoreKeys;
  const int end_row = min(rows, static_cast<int>(p.first_row + p.chunk_rows));
  if (first >= end_row || first_key > first + 15) return;
  // Operands of this lane, high and low parts. By way of shared memory, since a product wants its four words
  // in neighbouring registers, and a load of 16 bytes would tie them to others.
  __shared__ uint4 queries[kScoreWarps][2 * kGroups][32];
  std::uint32_t q[2][2 * kGroups][4];
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    const Element* const means = part == 0 ? p.q.high : p.q.low;
    const std::int64_t row = static_cast<std::int64_t>(head) * rows;
    const Element* const upper = means + (row + min(first + g, rows - 1)) * kHeadDim + 8 * t;
    const Element* const lower = means + (row + min(first + g + 8, rows - 1)) * kHeadDim + 8 * t;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const uint4 a = load_means(upper + 32 * j);
      const uint4 b = load_means(lower + 32 * j);
      store_words(&queries[threadIdx.x / 32][2 * j][lane], a.x, b.x, a.y, b.y);
      store_words(&queries[threadIdx.x / 32][2 * j + 1][lane], a.z, b.z, a.w, b.w);
    }
#pragma unroll
    for (int step = 0; step < 2 * kGroups; ++step) {
      load_words(q[part][step], &queries[threadIdx.x / 32][step][lane]);
    }
  }
  const int kv_head = head / (p.problem.heads / p.problem.kv_heads);
  std::uint32_t* const target = p.keys + (head * p.chunk_rows + tile + g) * p.key_stride;  // of row first + g
#pragma unroll 2
  for (int n = 0; n < kScoreKeys; n += 8) {
    if (first_key + n > first + 15) break;
    const std::int64_t key = static_cast<std::int64_t>(kv_head) * rows + min(first_key + n + g, rows - 1);
    float main[4] = {};
    float small[2][4] = {};
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const uint4 high = load_means(p.k.high + key * kHeadDim + 32 * j + 8 * t);
      const uint4 low = load_means(p.k.low + key * kHeadDim + 32 * j + 8 * t);
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const std::uint32_t k_high[2] = {step == 0 ? high.x : high.z, step == 0 ? high.y : high.w};
        const std::uint32_t k_low[2] = {step == 0 ? low.x : low.z, step == 0 ? low.y : low.w};
        Mma::multiply_add(main, q[0][2 * j + step], k_high[0], k_high[1]);
        Mma::multiply_add(small[0], q[0][2 * j + step], k_low[0], k_low[1]);
        Mma::multiply_add(small[1], q[1][2 * j + step], k_high[0], k_high[1]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first + g + 8 * r;
      if (row >= end_row) continue;
      uint2 pair;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int i = 2 * r + e;
        const int block = first_key + n + 2 * t + e;
        const bool forced = block == 0 || block == row || block == row - 1;
        (e == 0 ? pair.x : pair.y) = forced ? 0xFFFFFFFFU : ordered(main[i] + (small[0][i] + small[1][i]));
      }
      *reinterpret_cast<uint2*>(target + 8 * r * p.key_stride + first_key + n + 2 * t) = pair;
    }
  }
}

// Sum over the CTA of what each warp's lanes bring. Buffers alternate: one barrier is enough.
__device__ __forceinline__ int cta_sum(int mine, int (&of_warp)[kChooseWarps]) {
  mine = __reduce_add_sync(0xFFFFFFFF, mine);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
  __syncthreads();
  int sum = 0;
#pragma unroll
  for (int warp = 0; warp < kChooseWarps; ++warp) sum += of_warp[warp];
  return sum;
}

// Four neighbouring keys of a lane against a border, a bit each.
struct Four {
  unsigned above = 0;
  unsigned equal = 0;
  __device__ __forceinline__ Four(const std::uint32_t* keys, int first, int end, std::uint32_t border) {
    if (first >= end) return;
    const uint4 four = *reinterpret_cast<const uint4*>(keys + first);
    const std::uint32_t values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (first + e >= end) continue;
      above |= values[e] > border ? 1U << e : 0U;
      equal |= values[e] == border ? 1U << e : 0U;
    }
  }
};

// How many of four bits a lane the lanes before have, and all together.
__device__ __forceinline__ int before_lane(unsigned bits, int& all) {
  const unsigned lower = (1U << threadIdx.x % 32) - 1;
  int before = 0;
  all = 0;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const unsigned lanes = __ballot_sync(0xFFFFFFFF, (bits >> e & 1U) != 0);
    before += __popc(lanes & lower);
    all += __popc(lanes);
  }
  return before;
}

// Grid (rows of the chunk, heads). Shared memory: the row's keys, in whole steps; those behind are 0.
__global__ void __launch_bounds__(kChooseThreads) choose_small_kernel(const SmallSelectArguments p) {
  extern __shared__ __align__(16) std::uint32_t keys[];
  __shared__ int sums[2][kChooseWarps];
  __shared__ int above_of_warp[kChooseWarps];
  __shared__ int equal_of_warp[kChooseWarps];
  constexpr int kStep = 4 * kChooseThreads;
  const BlockSelectProblem& problem = p.problem;
  const int head = static_cast<int>(blockIdx.y);
  const auto rows = static_cast<int>(problem.rows());
  const int row = static_cast<int>(p.first_row) + static_cast<int>(blockIdx.x);
  if (row >= rows) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int count = row + 1;
  const int padded = (count + kStep - 1) / kStep * kStep;
  const std::uint32_t* const source = p.keys + (head * p.chunk_rows + blockIdx.x) * p.key_stride;
  for (int i = 4 * thread; i < padded; i += kStep) {
    uint4 four = make_uint4(0, 0, 0, 0);
    if (i < count) {
      four = *reinterpret_cast<const uint4*>(source + i);
      if (i + 1 >= count) four.y = 0;
      if (i + 2 >= count) four.z = 0;
      if (i + 3 >= count) four.w = 0;
    }
    *reinterpret_cast<uint4*>(keys + i) = four;
  }
  __syncthreads();

  // The key that the `keep` highest end with, or one below which none of them is and nothing else above.
  const int keep = static_cast<int>(min(p.budget, static_cast<std::int64_t>(count)));
  std::uint32_t lowest = 0;
  if (keep < count) {
    int pass = 0;
    for (std::uint32_t bit = 0x80000000U; bit != 0; bit >>= 1, pass ^= 1) {
      const std::uint32_t candidate = lowest | bit;
      int mine = 0;
#pragma unroll 4
      for (int i = 4 * thread; i < padded; i += kStep) {
        const uint4 four = *reinterpret_cast<const uint4*>(keys + i);
        mine += four.x >= candidate;
        mine += four.y >= candidate;
        mine += four.z >= candidate;
        mine += four.w >= candidate;
      }
      const int reached = cta_sum(mine, sums[pass]);
      if (reached >= keep) lowest = candidate;
      if (reached == keep) break;
    }
  }

  // Each warp writes what it has of its part of the row, behind what the warps before it have.
  constexpr int kRun = 4 * 32;
  const int part = (count + kRun * kChooseWarps - 1) / (kRun * kChooseWarps) * kRun;
  const int begin = min(warp * part, count);
  const int end = min(begin + part, count);
  int above = 0;
  int equal = 0;
  for (int i = begin + 4 * lane; i < end; i += kRun) {
    const Four four(keys, i, end, lowest);
    above += __popc(four.above);
    equal += __popc(four.equal);
  }
  above = __reduce_add_sync(0xFFFFFFFF, above);
  equal = __reduce_add_sync(0xFFFFFFFF, equal);
  if (lane == 0) {
    above_of_warp[warp] = above;
    equal_of_warp[warp] = equal;
  }
  __syncthreads();
  int all_above = 0;
  int above_before = 0;
  int equal_before = 0;
  for (int w = 0; w < kChooseWarps; ++w) {
    all_above += above_of_warp[w];
    if (w < warp) above_before += above_of_warp[w];
    if (w < warp) equal_before += equal_of_warp[w];
  }
  const int all_ties = keep - all_above;  // to keep, from the first on
  int ties = max(0, all_ties - equal_before);
  const std::int64_t list_begin =
      head * entries_a_head(problem, p.budget) + entries_before(row, p.budget, problem.edge);
  if (thread == 0) p.row_begin[static_cast<std::int64_t>(head) * rows + row] = list_begin;
  if (thread == 0 && row == rows - 1 && head == problem.heads - 1) {
    p.row_begin[static_cast<std::int64_t>(problem.heads) * rows] = list_begin + keep;
  }
  BlockEntry* out = p.entries + list_begin + above_before + min(equal_before, all_ties);
  const int pages = static_cast<int>(problem.edge) / kPageTokens;
  const auto last = static_cast<int>(min(problem.tokens, (row + 1) * problem.edge)) - 1;  // query of the row
  for (int start = begin; start < end; start += kRun) {
    const int i = start + 4 * lane;
    const Four four(keys, i, end, lowest);
    unsigned kept = four.above;
    if (__any_sync(0xFFFFFFFF, four.equal != 0)) {
      int all = 0;
      int rank = before_lane(four.equal, all);
      for (unsigned left = four.equal; left != 0; left &= left - 1) {
        if (rank++ < ties) kept |= left & -left;
      }
      ties = max(0, ties - all);
    }
    int taken = 0;
    BlockEntry* place = out + before_lane(kept, taken);
    out += taken;
    for (; kept != 0; kept &= kept - 1) {
      const int page = (i + __ffs(static_cast<int>(kept)) - 1) * pages;
      const int seen = min(pages, last / kPageTokens - page + 1);
      const unsigned mask = ((1U << seen) - 1) << page % kSmallBlockPages;
      place->bits = static_cast<std::uint32_t>(page / kSmallBlockPages) << 4 | mask;
      ++place;
    }
  }
}

std::int64_t key_stride(const BlockSelectProblem& problem) {
  return ceil_div(problem.rows(), kScoreKeys) * kScoreKeys;
}

// Query blocks scored at a time.
std::int64_t chunk_rows(const BlockSelectProblem& problem) {
  const std::int64_t row_bytes = 4 * problem.heads * key_stride(problem);
  const std::int64_t tiles = std::max<std::int64_t>(1, kChunkBytes / (row_bytes * kScoreRows));
  return std::min(tiles * kScoreRows, ceil_div(problem.rows(), kScoreRows) * kScoreRows);
}

template <typename T, typename TPair>
void pool(const DeviceBlockSelectParams& p, const SplitMeans& q, const SplitMeans& k) {
  const BlockSelectProblem& problem = p.problem;
  const auto rows = static_cast<unsigned>(problem.rows());
  const std::int64_t pairs = static_cast<std::int64_t>(problem.heads) * problem.head_dim / 2;
  launch(pool_small_queries_kernel<T, TPair>,
         {.grid = dim3(rows, static_cast<unsigned>(ceil_div(pairs, kPoolThreads))), .block = kPoolThreads},
         p.stream, problem, static_cast<const T*>(p.q), p.q_row_stride, q);
  launch(pool_small_keys_kernel<T, TPair>,
         {.grid = dim3(rows, static_cast<unsigned>(problem.kv_heads)), .block = kPoolThreads}, p.stream,
         problem, p.kv, k);
}

}  // namespace

std::size_t small_block_workspace(const BlockSelectProblem& problem) {
  if (problem.tokens == 0) return 0;
  const std::int64_t means =
      2 * problem.rows() * problem.head_dim * (problem.heads + problem.kv_heads) * std::int64_t{2};
  return static_cast<std::size_t>(means + 4 * problem.heads * chunk_rows(problem) * key_stride(problem));
}

void select_small_blocks(const DeviceBlockSelectParams& p) {
  const BlockSelectProblem& problem = p.problem;
  if (problem.head_dim == 256) {
    throw ResourceError(
        "block_sparse on the GPU: blocks of {} tokens take heads of 64 or 128 channels, not 256; choose an "
        "edge of 64 or 128",
        problem.edge);
  }
  constexpr std::int64_t kMostRow = 50 * 1024;  // keys in shared memory
  const std::int64_t rows = problem.rows();
  if (rows > kMostRow) {
    throw ResourceError(
        "block_sparse on the GPU: {} blocks a row do not fit on the chip; choose a larger edge", rows);
  }
  const std::int64_t q_elements = problem.heads * rows * problem.head_dim;
  const std::int64_t k_elements = problem.kv_heads * rows * problem.head_dim;
  auto* const means = static_cast<Element*>(p.workspace);
  SmallSelectArguments a{};
  a.problem = problem;
  a.q = {means, means + q_elements};
  a.k = {means + 2 * q_elements, means + 2 * q_elements + k_elements};
  a.keys = reinterpret_cast<std::uint32_t*>(means + 2 * (q_elements + k_elements));
  a.key_stride = key_stride(problem);
  a.chunk_rows = chunk_rows(problem);
  a.budget = kept_blocks(problem);
  a.row_begin = p.row_begin;
  a.entries = p.entries;
  if (p.kv.dtype == DType::kBF16) {
    pool<__nv_bfloat16, __nv_bfloat162>(p, a.q, a.k);
  } else {
    pool<__half, __half2>(p, a.q, a.k);
  }
  const auto heads = static_cast<unsigned>(problem.heads);
  for (a.first_row = 0; a.first_row < rows; a.first_row += a.chunk_rows) {
    const std::int64_t end = std::min(a.first_row + a.chunk_rows, rows);
    const LaunchShape score = {
        .grid = dim3(static_cast<unsigned>(ceil_div(end, kScoreKeys)),
                     static_cast<unsigned>(ceil_div(end - a.first_row, kScoreRows)), heads),
        .block = kScoreThreads};
    if (problem.head_dim == 64) {
      launch(score_small_kernel<64>, score, p.stream, a);
    } else {
      launch(score_small_kernel<128>, score, p.stream, a);
    }
    constexpr std::int64_t kStep = 4 * kChooseThreads;
    launch(choose_small_kernel,
           {.grid = dim3(static_cast<unsigned>(end - a.first_row), heads),
            .block = kChooseThreads,
            .shared_bytes = static_cast<std::size_t>(ceil_div(end, kStep) * kStep * 4)},
           p.stream, a);
  }
}

}  // namespace tessera::cuda
