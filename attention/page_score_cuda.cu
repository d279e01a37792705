// Scores of pages (attention/page_select_cuda.hpp). Bound by memory: bounds are read once, 1/16 of the keys
// and values. Each warp runs by itself over groups of 32 pages, a page a lane, since a score is one chain of
// additions over d; a ring of stages filled by cp.async holds slices of up to 256 bytes of both bounds of
// the group, so that with D = 128 the bounds of a page are read in one piece.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "attention/fixed_point.hpp"
#include "attention/page_select_cuda.hpp"
#include "attention/ptx/cp_async.cuh"
#include "kvcache/kv_view.hpp"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/cuda_overlap.cuh"
#include "runtime/core/error.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kGroupPages = 32;
constexpr int kGroupBlocks = kGroupPages * kPageTokens / kBlockTokens;
constexpr int kMostSequences = 256;

struct ScoreArgs {
  PageSelectProblem problem;
  DType q_dtype;
  const std::byte* q;
  const std::int32_t* positions;
  const std::int32_t* const* tables;
  std::int64_t table_stride;
  const std::byte* bounds;
  float* scores;
  std::int64_t score_stride;
  bool settled;
};

// The values of 16 bytes, widened; exact.
__device__ __forceinline__ void widen(const uint4& raw, float (&values)[4], const float*) {
  values[0] = __uint_as_float(raw.x);
  values[1] = __uint_as_float(raw.y);
  values[2] = __uint_as_float(raw.z);
  values[3] = __uint_as_float(raw.w);
}
__device__ __forceinline__ void widen(const uint4& raw, float (&values)[8], const __nv_bfloat16*) {
  const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = __uint_as_float(words[i] << 16);
    values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ void widen(const uint4& raw, float (&values)[8], const __half*) {
  const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __half22float2(reinterpret_cast<const __half2&>(words[i]));
    values[2 * i] = pair.x;
    values[2 * i + 1] = pair.y;
  }
}

// to_fixed and from_fixed of attention/fixed_point.hpp: scaling by a power of two is exact, the conversions
// round to nearest even.
__device__ __forceinline__ Fixed to_fixed_on_device(float value) {
  return __double2ll_rn(static_cast<double>(value) * 0x1p40);
}
__device__ __forceinline__ float from_fixed_on_device(Fixed value) {
  return __double2float_rn(__ll2double_rn(value) * 0x1p-40);
}

// split_query of attention/page_scores.hpp, by one warp; each lane has neighbouring channels. Eight heads at
// a time are brought to `scratch` (a stage of the ring), so that their loads are under way together and the
// sums are a short loop: code that runs once a list comes from far away. split: (2, D), positive parts first.
template <class Q, int kHeadDim>
__device__ __forceinline__ void split_on_device(const Q* q, int heads, std::byte* scratch, float* split) {
  constexpr int kChannels = kHeadDim / 32;
  constexpr int kAtOnce = 8;
  struct alignas(sizeof(Q) * kChannels < 16 ? sizeof(Q) * kChannels : 16) Channels {
    Q values[kChannels];
  };
  const int lane = static_cast<int>(threadIdx.x % 32);
  Channels* staged = reinterpret_cast<Channels*>(scratch) + lane;  // each lane reads what it wrote
  Fixed positive[kChannels] = {};
  Fixed negative[kChannels] = {};
  for (int first = 0; first < heads; first += kAtOnce) {
    Channels loaded[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int head = min(first + i, heads - 1);
      loaded[i] = reinterpret_cast<const Channels*>(q + static_cast<std::size_t>(head) * kHeadDim)[lane];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) staged[i * 32] = loaded[i];
#pragma unroll 2
    for (int i = 0; i < min(kAtOnce, heads - first); ++i) {
      const Channels channels = staged[i * 32];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const float value = static_cast<float>(channels.values[c]);
        const Fixed fixed = to_fixed_on_device(value);
        positive[c] += value > 0 ? fixed : 0;
        negative[c] += value > 0 ? 0 : fixed;
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    float high = from_fixed_on_device(positive[c]);
    float low = from_fixed_on_device(negative[c]);
    if (heads == 1) {  // taken as it is: std::max and std::min, whose zeros keep their sign
      const float value = static_cast<float>(staged[0].values[c]);
      high = value < 0.0f ? 0.0f : value;
      low = 0.0f < value ? 0.0f : value;
    }
    split[lane * kChannels + c] = high;
    split[kHeadDim + lane * kChannels + c] = low;
  }
}

template <int kHeadDim>
__device__ __forceinline__ void split_list(const ScoreArgs& p, int list, std::byte* scratch, float* split) {
  const int heads = p.problem.heads / p.problem.lists();
  const std::size_t first = static_cast<std::size_t>(list) * static_cast<std::size_t>(heads) * kHeadDim;
  if (p.q_dtype == DType::kF32) {
    split_on_device<float, kHeadDim>(reinterpret_cast<const float*>(p.q) + first, heads, scratch, split);
  } else if (p.q_dtype == DType::kBF16) {
    split_on_device<__nv_bfloat16, kHeadDim>(reinterpret_cast<const __nv_bfloat16*>(p.q) + first, heads,
                                             scratch, split);
  } else {
    split_on_device<__half, kHeadDim>(reinterpret_cast<const __half*>(p.q) + first, heads, scratch, split);
  }
}

// A group of 32 pages of one list, and the way to the next. Groups are numbered over all lists, those of a
// list after one another.
class GroupCursor {
 public:
  // groups_before: (N + 1) groups of the sequences before each.
  __device__ GroupCursor(const ScoreArgs& p, const int* groups_before, int group) : p_(p) {
    int low = 0;
    int high = p.problem.sequences;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (groups_before[middle] <= group ? low : high) = middle;
    }
    enter(low);
    const int rest = group - groups_before[low];
    group_ = rest % groups_;
    enter_list(rest / groups_);
  }
  __device__ __forceinline__ void advance() {
    if (++group_ < groups_) return;
    group_ = 0;
    if (list_ + 1 < p_.problem.lists()) return enter_list(list_ + 1);
    for (int next = sequence_ + 1; next < p_.problem.sequences; ++next) {
      enter(next);
      if (groups_ > 0) return enter_list(0);
    }
  }
  __device__ int list() const { return sequence_ * p_.problem.lists() + list_; }
  __device__ int first_page() const { return group_ * kGroupPages; }
  __device__ int pages() const { return pages_; }  // of the list
  // Lane b < 8: slot of block b of the group, or kNoSlot; blocks past the last page count as not held.
  __device__ __forceinline__ int slot() const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int block = group_ * kGroupBlocks + lane;
    if (lane >= kGroupBlocks || block * (kBlockTokens / kPageTokens) >= pages_) return kNoSlot;
    return table_[block];
  }

 private:
  __device__ __forceinline__ void enter(int sequence) {
    sequence_ = sequence;
    pages_ = max(p_.positions[sequence], 0) / kPageTokens;
    groups_ = (pages_ + kGroupPages - 1) / kGroupPages;
  }
  __device__ __forceinline__ void enter_list(int list) {
    list_ = list;
    const int kv_head = list * p_.problem.kv_heads / p_.problem.lists();
    table_ = p_.tables[sequence_] + kv_head * p_.table_stride;
  }

  const ScoreArgs& p_;
  const std::int32_t* table_ = nullptr;  // of the KV head
  int sequence_ = 0;
  int pages_ = 0;
  int groups_ = 0;  // of a list
  int list_ = 0;    // of the sequence
  int group_ = 0;   // of the list
};

template <class T, int kHeadDim>
struct ScoreShape {
  static constexpr int kBoundBytes = kHeadDim * static_cast<int>(sizeof(T));
  static constexpr int kSliceBytes = std::min(kBoundBytes, 256);
  static constexpr int kSlices = kBoundBytes / kSliceBytes;
  static constexpr int kStageBytes = kGroupPages * 2 * kSliceBytes;
  static constexpr int kStages = 48 * 1024 / kStageBytes;  // three, or six of half the size
  static constexpr int kWarpBytes = kStages * kStageBytes + 2 * kHeadDim * static_cast<int>(sizeof(float));
  static_assert(8 * kHeadDim * static_cast<int>(sizeof(float)) <= kStageBytes, "split_on_device's scratch");
  // The stage before this one in the ring: read last, filled next.
  static __device__ __forceinline__ int last_read(int stage) { return stage == 0 ? kStages - 1 : stage - 1; }
};

template <class T, int kHeadDim>
__global__ __launch_bounds__(kWarps * 32, 1) void score_kernel(const __grid_constant__ ScoreArgs p) {
  using Shape = ScoreShape<T, kHeadDim>;
  constexpr int kBoundBytes = Shape::kBoundBytes;
  constexpr int kSliceBytes = Shape::kSliceBytes;
  constexpr int kSlices = Shape::kSlices;
  constexpr int kStageBytes = Shape::kStageBytes;
  constexpr int kStages = Shape::kStages;
  constexpr int kChunkValues = 16 / static_cast<int>(sizeof(T));
  constexpr int kBoundChunks = kSliceBytes / 16;  // of one bound in a slice
  constexpr int kPagesAtOnce = 32 / (2 * kBoundChunks);
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ int groups_before[kMostSequences + 1];

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  std::byte* ring = shared + warp * Shape::kWarpBytes;
  float* split = reinterpret_cast<float*>(ring + kStages * kStageBytes);
  const std::uint32_t ring_address = ptx::shared_address(ring);

  if (!p.settled) wait_for_previous();
  if (warp == 0) {
    int before = 0;
    for (int first = 0; first < p.problem.sequences; first += 32) {
      const int sequence = first + lane;
      int groups = 0;
      if (sequence < p.problem.sequences) {
        const int pages = max(p.positions[sequence], 0) / kPageTokens;
        groups = (pages + kGroupPages - 1) / kGroupPages * p.problem.lists();
      }
      int sum = groups;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(~0u, sum, distance);
        if (lane >= distance) sum += other;
      }
      if (sequence < p.problem.sequences) groups_before[sequence] = before + sum - groups;
      before += __shfl_sync(~0u, sum, 31);
    }
    if (lane == 0) groups_before[p.problem.sequences] = before;
  }
  __syncthreads();
  const std::int64_t all = groups_before[p.problem.sequences];
  const std::int64_t me = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * kWarps;
  const int begin = static_cast<int>(all * me / warps);
  const int end = static_cast<int>(all * (me + 1) / warps);
  if (begin == end) {
    wait_for_previous();
    return;
  }

  GroupCursor loading(p, groups_before, begin);
  GroupCursor scoring = loading;
  int left = (end - begin) * kSlices;  // to load
  int load_slice = 0;
  int slot = kNoSlot;
  const auto load = [&](int stage) {
    if (left > 0) {
      if (load_slice == 0) slot = loading.slot();
      const std::uint32_t target = ring_address + stage * kStageBytes;
#pragma unroll 16
      for (int i = 0; i < kStageBytes / 512; ++i) {
        const int page = kPagesAtOnce * i + lane / (2 * kBoundChunks);
        const int chunk = lane % (2 * kBoundChunks);  // of the lowest values, then of the highest
        const int page_slot = __shfl_sync(~0u, slot, kPagesAtOnce * i / (kBlockTokens / kPageTokens));
        const bool held = page_slot != kNoSlot;
        const std::size_t place =
            static_cast<std::size_t>(held ? page_slot : 0) * (kBlockTokens / kPageTokens) +
            static_cast<std::size_t>(page % (kBlockTokens / kPageTokens));
        const std::byte* source = p.bounds + place * 2 * kBoundBytes + chunk / kBoundChunks * kBoundBytes +
                                  load_slice * kSliceBytes + chunk % kBoundChunks * 16;
        ptx::copy_16_bytes(target + page * 2 * kSliceBytes + ((chunk ^ (page & 7)) << 4), source, held);
      }
      --left;
      if (++load_slice == kSlices) {
        load_slice = 0;
        loading.advance();
      }
    }
    ptx::commit_copies();
  };

#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) load(stage);
  wait_for_previous();
  let_next_start();
  int stage = 0;
  int current_list = -1;
  for (int group = begin; group < end; ++group) {
    if (scoring.list() != current_list) {
      __syncwarp();
      current_list = scoring.list();
      split_list<kHeadDim>(p, current_list, ring + Shape::last_read(stage) * kStageBytes, split);
      __syncwarp();
    }
    const int held_slot = scoring.slot();
    float score = 0;
#pragma unroll 1
    for (int slice = 0; slice < kSlices; ++slice) {
      ptx::wait_copies<kStages - 2>();
      __syncwarp();
      load(Shape::last_read(stage));
      const std::byte* page = ring + stage * kStageBytes + lane * 2 * kSliceBytes;
      const float* positive = split + slice * (kSliceBytes / static_cast<int>(sizeof(T)));
#pragma unroll 8
      for (int chunk = 0; chunk < kBoundChunks; ++chunk) {
        float lowest[kChunkValues];
        float highest[kChunkValues];
        widen(*reinterpret_cast<const uint4*>(page + ((chunk ^ (lane & 7)) << 4)), lowest,
              static_cast<const T*>(nullptr));
        widen(*reinterpret_cast<const uint4*>(page + (((chunk + kBoundChunks) ^ (lane & 7)) << 4)), highest,
              static_cast<const T*>(nullptr));
#pragma unroll
        for (int i = 0; i < kChunkValues; ++i) {
          const int d = chunk * kChunkValues + i;
          score = __fmaf_rn(positive[d], highest[i], score);
          score = __fmaf_rn(positive[kHeadDim + d], lowest[i], score);
        }
      }
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }
    const bool held = __shfl_sync(~0u, held_slot, lane / (kBlockTokens / kPageTokens)) != kNoSlot;
    const int page = scoring.first_page() + lane;
    if (page < scoring.pages()) {
      p.scores[scoring.list() * p.score_stride + page] = held ? score : __uint_as_float(kPageNotHeld);
    }
    scoring.advance();
  }
}

template <class T, int kHeadDim>
void launch_scores(const ScoreArgs& args, const DevicePageScoreParams& p) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(p.multiprocessors));
  shape.block = dim3(kWarps * 32);
  shape.shared_bytes = kWarps * ScoreShape<T, kHeadDim>::kWarpBytes;
  shape.overlaps_previous = p.overlaps_previous;
  launch(score_kernel<T, kHeadDim>, shape, p.stream, args);
}

template <class T>
void launch_scores_of(const ScoreArgs& args, const DevicePageScoreParams& p) {
  switch (p.problem.head_dim) {
    case 64:
      return launch_scores<T, 64>(args, p);
    case 128:
      return launch_scores<T, 128>(args, p);
    case 256:
      return launch_scores<T, 256>(args, p);
    default:
      TESSERA_CHECK(!"head dimension of 64, 128 or 256");
  }
}

}  // namespace

void score_pages_on_device(const DevicePageScoreParams& p) {
  TESSERA_CHECK(p.problem.sequences <= kMostSequences && p.multiprocessors > 0);
  TESSERA_CHECK(p.problem.kv_heads > 0 && p.problem.heads % p.problem.kv_heads == 0);
  if (p.problem.sequences == 0) return;
  const ScoreArgs args = {p.problem,      p.q_dtype, p.q,      p.positions,    p.tables,
                          p.table_stride, p.bounds,  p.scores, p.score_stride, p.settled};
  switch (p.bounds_dtype) {
    case DType::kF32:
      return launch_scores_of<float>(args, p);
    case DType::kBF16:
      return launch_scores_of<__nv_bfloat16>(args, p);
    case DType::kF16:
      return launch_scores_of<__half>(args, p);
  }
}

}  // namespace tessera::cuda
