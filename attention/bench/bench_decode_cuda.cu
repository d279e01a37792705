// Decode attention and page selection on one GPU, timed against a plain read of device memory in the same
// run.
//   bench_decode_cuda SUITE…      one, ordered, batch8, batch64, variants
// Every figure is a median over replays of a graph that goes round several sets of keys and values (with
// their own queries, tables, bounds and lists), so that L2 holds nothing of use when a set comes round again.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "attention/decode_cuda.hpp"
#include "attention/page_select_cuda.hpp"
#include "kvcache/kv_view.hpp"
#include "runtime/core/cuda_check.hpp"
#include "runtime/core/cuda_memory.hpp"
#include "runtime/core/cuda_stream.hpp"
#include "runtime/core/error.hpp"

using namespace tessera;
using namespace tessera::cuda;

namespace {

constexpr int kHeadDim = 128;
constexpr int kPagesOfBlock = kBlockTokens / kPageTokens;

// ---- kernels of the bench ---------------------------------------------------------------------------------

__device__ std::uint32_t scramble(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return static_cast<std::uint32_t>(x >> 32);
}

// bf16 values in ±[0.5, 2): the spread of real keys does not matter here, zeros would.
__global__ void fill_random(std::uint32_t* pairs, std::size_t count, std::uint64_t seed) {
  const std::size_t step = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    pairs[i] = (scramble(seed + i * 0x9e3779b97f4a7c15ull) & 0x80ff80ffu) | 0x3f003f00u;
  }
}

// One thread a channel of a page: the order of bf16 values as floats.
__global__ void fill_bounds(const std::uint16_t* slots, std::uint16_t* bounds, std::size_t pages) {
  const std::size_t page = blockIdx.x;
  if (page >= pages) return;
  const std::uint16_t* keys = slots + page / kPagesOfBlock * (2 * kBlockTokens * kHeadDim) +
                              page % kPagesOfBlock * (kPageTokens * kHeadDim);
  float low = INFINITY;
  float high = -INFINITY;
  for (int row = 0; row < kPageTokens; ++row) {
    const float value = __uint_as_float(std::uint32_t{keys[row * kHeadDim + threadIdx.x]} << 16);
    low = fminf(low, value);
    high = fmaxf(high, value);
  }
  std::uint16_t* out = bounds + page * 2 * kHeadDim + threadIdx.x;
  out[0] = static_cast<std::uint16_t>(__float_as_uint(low) >> 16);
  out[kHeadDim] = static_cast<std::uint16_t>(__float_as_uint(high) >> 16);
}

__global__ __launch_bounds__(512) void read_all(const uint4* data, std::size_t count, std::uint32_t* sink) {
  constexpr int kAtOnce = 8;
  std::uint32_t mixed = 0;
  const std::size_t step = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += kAtOnce * step) {
    uint4 values[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const std::size_t at = i + j * step;
      values[j] = at < count ? __ldcs(data + at) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) mixed ^= values[j].x ^ values[j].y ^ values[j].z ^ values[j].w;
  }
  if (mixed == 0x12345679u) *sink = mixed;
}

// ---- timing -----------------------------------------------------------------------------------------------

struct Gpu {
  CudaStream stream{Device{DeviceKind::kCuda, 0}};
  MemoryMeter meter;
  int multiprocessors = 0;
  double read_rate = 0;  // bytes a second

  DeviceBuffer empty(std::size_t bytes) {
    return DeviceBuffer(bytes, Device{DeviceKind::kCuda, 0}, MemoryKind::kWorkspace, meter);
  }
  template <class T>
  DeviceBuffer upload(const std::vector<T>& values) {
    DeviceBuffer buffer = empty(values.size() * sizeof(T));
    CUDA_CHECK(cudaMemcpy(buffer.data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaDeviceSynchronize());  // small copies return before they arrive
    return buffer;
  }
};

// Microseconds of one step; work queues `steps` of them.
double time_graph(Gpu& gpu, int steps, const std::function<void()>& work, int replays = 15) {
  cudaStream_t stream = native(gpu.stream.view());
  work();  // first use of each kernel stays outside
  CUDA_CHECK(cudaStreamSynchronize(stream));
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  work();
  cudaGraph_t graph;
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t executable;
  CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin;
  cudaEvent_t end;
  CUDA_CHECK(cudaEventCreate(&begin));
  CUDA_CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < replays + 2; ++i) {
    CUDA_CHECK(cudaEventRecord(begin, stream));
    CUDA_CHECK(cudaGraphLaunch(executable, stream));
    CUDA_CHECK(cudaEventRecord(end, stream));
    CUDA_CHECK(cudaEventSynchronize(end));
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i >= 2) times.push_back(milliseconds);
  }
  CUDA_CHECK(cudaEventDestroy(begin));
  CUDA_CHECK(cudaEventDestroy(end));
  CUDA_CHECK(cudaGraphExecDestroy(executable));
  CUDA_CHECK(cudaGraphDestroy(graph));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e3 / steps;
}

void print(const Gpu& gpu, const std::string& what, double microseconds, double bytes, double dense) {
  std::printf("%-44s %8.1f us %5.2f TB/s %4.2f of read", what.c_str(), microseconds,
              bytes / microseconds * 1e-6, bytes / microseconds * 1e6 / gpu.read_rate);
  if (dense > 0) std::printf("  dense/%.2f", dense / microseconds);
  std::printf("\n");
  std::fflush(stdout);
}

// ---- a batch ----------------------------------------------------------------------------------------------

class Bench {
 public:
  Bench(Gpu& gpu, int sequences, int kv_heads, int group, std::int64_t length, int sets, bool shuffled = true)
      : gpu_(gpu), length_(length), sets_(sets) {
    problem_ = {sequences, kv_heads * group, kv_heads, kHeadDim, kv_heads};
    config_ = choose_decode_config(problem_, gpu.multiprocessors);
    const std::int64_t blocks = ceil_div(length, kBlockTokens);
    const std::int64_t lists = problem_.all_lists();
    slots_ = lists * blocks;
    slot_bytes_ = 2ull * kBlockTokens * kHeadDim * 2;
    std::mt19937 rng(1);
    std::vector<std::int32_t> table(static_cast<std::size_t>(slots_));
    std::iota(table.begin(), table.end(), 0);
    if (shuffled) std::shuffle(table.begin(), table.end(), rng);
    table_ = gpu.upload(table);
    std::vector<const std::int32_t*> tables;
    for (int n = 0; n < sequences; ++n) tables.push_back(table_.as<std::int32_t>() + n * kv_heads * blocks);
    tables_ = gpu.upload(tables);
    table_stride_ = blocks;
    positions_ = gpu.upload(std::vector<std::int32_t>(static_cast<std::size_t>(sequences),
                                                      static_cast<std::int32_t>(length) - 1));
    score_stride_ = ceil_div(length, kPageTokens);
    for (int set = 0; set < sets; ++set) {
      pool_.push_back(gpu.empty(static_cast<std::size_t>(slots_) * slot_bytes_));
      bounds_.push_back(gpu.empty(static_cast<std::size_t>(slots_) * slot_bytes_ / kPageTokens));
      q_.push_back(gpu.empty(static_cast<std::size_t>(sequences * problem_.heads * kHeadDim) * 2));
      fill(pool_.back(), 3 * static_cast<std::uint64_t>(set) + 1);
      fill(q_.back(), 3 * static_cast<std::uint64_t>(set) + 2);
      const std::size_t pages = static_cast<std::size_t>(slots_) * kPagesOfBlock;
      fill_bounds<<<static_cast<unsigned>(pages), kHeadDim, 0, native(gpu.stream.view())>>>(
          pool_.back().as<std::uint16_t>(), bounds_.back().as<std::uint16_t>(), pages);
      CUDA_CHECK(cudaGetLastError());
    }
    out_ = gpu.empty(static_cast<std::size_t>(sequences * problem_.heads * kHeadDim) * 2);
    lse_ = gpu.empty(static_cast<std::size_t>(sequences * problem_.heads) * 4);
    scores_ = gpu.empty(static_cast<std::size_t>(lists * score_stride_) * 4);
    chosen_ = gpu.empty(static_cast<std::size_t>(lists * (score_stride_ + 1)) * 4);
    begin_ = gpu.empty(static_cast<std::size_t>(lists) * 4);
    count_ = gpu.empty(static_cast<std::size_t>(lists) * 4);
    configure(config_);
  }

  DecodeConfig config() const { return config_; }
  void configure(const DecodeConfig& config) {
    config_ = config;
    plan_ = gpu_.empty(decode_plan_bytes(problem_, config));
    workspace_ = gpu_.empty(decode_workspace_bytes(problem_, config));
  }
  void overlap(bool on) { overlap_ = on; }

  double kv_bytes() const { return static_cast<double>(slots_) * static_cast<double>(slot_bytes_); }

  double dense(bool with_plan) {
    DecodeReach reach;
    reach.positions = positions_.as<std::int32_t>();
    plan(reach);
    gpu_.stream.synchronize();
    return time_graph(gpu_, steps(), [&] {
      for (int i = 0; i < steps(); ++i) {
        if (with_plan) plan(reach);
        attend(reach, i % sets_, with_plan);
      }
    });
  }

  // Rows of each head: `kept` of the length on average, between half and one and a half of that.
  double packed(double kept, bool with_plan) {
    std::vector<std::int32_t> rows;
    std::mt19937 rng(2);
    const double average = kept * static_cast<double>(length_);
    for (int list = 0; list < problem_.all_lists(); list += 2) {
      const int more = static_cast<int>(average * (static_cast<double>(rng() % 1001) / 1000 - 0.5));
      rows.push_back(static_cast<std::int32_t>(average) + more);
      if (list + 1 < problem_.all_lists()) rows.push_back(static_cast<std::int32_t>(average) - more);
    }
    const DeviceBuffer on_device = gpu_.upload(rows);
    DecodeReach reach;
    reach.rows_of_head = on_device.as<std::int32_t>();
    plan(reach);
    gpu_.stream.synchronize();
    return time_graph(gpu_, steps(), [&] {
      for (int i = 0; i < steps(); ++i) {
        if (with_plan) plan(reach);
        attend(reach, i % sets_, with_plan);
      }
    });
  }

  enum Part { kScore = 1, kSelect = 2, kPlan = 4, kAttend = 8 };
  double quest(double kept, int parts) {
    const int budget = static_cast<int>(kept * static_cast<double>(length_)) / kPageTokens - 1;
    DecodeReach reach;
    reach.positions = positions_.as<std::int32_t>();
    reach.pages = chosen_.as<std::int32_t>();
    reach.page_stride = score_stride_ + 1;
    reach.page_count = count_.as<std::int32_t>();
    reach.budget_pages = budget;
    plan(reach);
    score(0);
    select(budget);
    gpu_.stream.synchronize();
    return time_graph(gpu_, steps(), [&] {
      for (int i = 0; i < steps(); ++i) {
        if (parts & kPlan) plan(reach);
        if (parts & kScore) score(i % sets_);
        if (parts & kSelect) select(budget);
        if (parts & kAttend) attend(reach, i % sets_);
      }
    });
  }
  double quest_bytes(double kept) const { return kv_bytes() * (kept + 1.0 / 16); }

 private:
  int steps() const { return sets_ * std::max(1, (kv_bytes() < 1e9 ? 24 : 4) / sets_); }
  void fill(DeviceBuffer& buffer, std::uint64_t seed) {
    fill_random<<<2048, 256, 0, native(gpu_.stream.view())>>>(buffer.as<std::uint32_t>(), buffer.bytes() / 4,
                                                              seed * 0x123456789abcdefull);
    CUDA_CHECK(cudaGetLastError());
  }
  void plan(const DecodeReach& reach) {
    plan_decode({problem_, config_, reach, plan_.data(), overlap_, gpu_.stream.view()});
  }
  void attend(const DecodeReach& reach, int set, bool after_plan = false) {
    DecodeAttendParams p;
    p.problem = problem_;
    p.config = config_;
    p.reach = reach;
    p.plan = plan_.data();
    p.workspace = workspace_.data();
    p.q = q_[static_cast<std::size_t>(set)].data();
    p.slots = pool_[static_cast<std::size_t>(set)].data();
    p.slot_bytes = slot_bytes_;
    p.tables = tables_.as<const std::int32_t*>();
    p.table_stride = table_stride_;
    p.scale = 0.0883883476f;
    p.out = out_.data();
    p.lse = lse_.as<float>();
    p.overlaps_previous = overlap_;
    p.settled = overlap_ && !after_plan;
    p.stream = gpu_.stream.view();
    attend_decode(p);
  }
  PageSelectProblem select_problem() const {
    return {problem_.sequences, problem_.heads, problem_.kv_heads, kHeadDim, false};
  }
  void score(int set) {
    DevicePageScoreParams p;
    p.problem = select_problem();
    p.multiprocessors = gpu_.multiprocessors;
    p.q = q_[static_cast<std::size_t>(set)].data();
    p.positions = positions_.as<std::int32_t>();
    p.tables = tables_.as<const std::int32_t*>();
    p.table_stride = table_stride_;
    p.bounds = bounds_[static_cast<std::size_t>(set)].data();
    p.scores = scores_.as<float>();
    p.score_stride = score_stride_;
    p.overlaps_previous = overlap_;
    p.settled = overlap_;
    p.stream = gpu_.stream.view();
    score_pages_on_device(p);
  }
  void select(int budget) {
    DevicePageSelectParams p;
    p.problem = select_problem();
    p.budget_pages = budget;
    p.positions = positions_.as<std::int32_t>();
    p.scores = scores_.as<float>();
    p.score_stride = score_stride_;
    p.pages = chosen_.as<std::int32_t>();
    p.page_stride = score_stride_ + 1;
    p.page_begin = begin_.as<std::int32_t>();
    p.page_count = count_.as<std::int32_t>();
    p.overlaps_previous = overlap_;
    p.settled = overlap_;
    p.stream = gpu_.stream.view();
    select_pages_on_device(p);
  }

  Gpu& gpu_;
  std::int64_t length_;
  int sets_;
  DecodeProblem problem_;
  DecodeConfig config_;
  std::int64_t slots_ = 0;
  std::size_t slot_bytes_ = 0;
  std::int64_t table_stride_ = 0;
  std::int64_t score_stride_ = 0;
  bool overlap_ = true;
  DeviceBuffer table_, tables_, positions_, out_, lse_, scores_, chosen_, begin_, count_, plan_, workspace_;
  std::vector<DeviceBuffer> pool_, bounds_, q_;
};

void measure_read(Gpu& gpu) {
  DeviceBuffer data = gpu.empty(std::size_t{2} << 30);
  DeviceBuffer sink = gpu.empty(4);
  fill_random<<<2048, 256, 0, native(gpu.stream.view())>>>(data.as<std::uint32_t>(), data.bytes() / 4, 9);
  double best = 1e30;
  for (const int ctas_of_sm : {2, 4}) {
    best = std::min(best, time_graph(gpu, 1, [&] {
                      read_all<<<static_cast<unsigned>(gpu.multiprocessors * ctas_of_sm), 512, 0,
                                 native(gpu.stream.view())>>>(data.as<uint4>(), data.bytes() / 16,
                                                              sink.as<std::uint32_t>());
                    }));
  }
  gpu.read_rate = static_cast<double>(data.bytes()) / best * 1e6;
  std::printf("read of 2 GiB: %.2f TB/s\n", gpu.read_rate * 1e-12);
}

void run_batch(Gpu& gpu, const char* name, int sequences, int kv_heads, std::int64_t length, int sets,
               bool shuffled = true) {
  Bench bench(gpu, sequences, kv_heads, 8, length, sets, shuffled);
  const std::string head = std::string(name) + " ";
  const double dense = bench.dense(false);
  print(gpu, head + "dense", dense, bench.kv_bytes(), 0);
  const double planned = bench.dense(true);
  print(gpu, head + "dense, with plan", planned, bench.kv_bytes(), 0);
  using B = Bench;
  const double kept = 0.05;
  const double bytes = bench.quest_bytes(kept);
  const double kv = bench.kv_bytes();
  print(gpu, head + "quest .95 score+select+attend", bench.quest(kept, B::kScore | B::kSelect | B::kAttend),
        bytes, dense);
  print(gpu, head + "quest .95 with plan", bench.quest(kept, B::kScore | B::kSelect | B::kPlan | B::kAttend),
        bytes, dense);
  print(gpu, head + "  score alone", bench.quest(kept, B::kScore), kv / 16, 0);
  print(gpu, head + "  select alone", bench.quest(kept, B::kSelect), kv / 16 / 256 * 2, 0);
  print(gpu, head + "  attend alone", bench.quest(kept, B::kAttend), kv * kept, 0);
  print(gpu, head + "  plan alone", bench.quest(kept, B::kPlan), 0, 0);
  print(gpu, head + "packed .95", bench.packed(kept, false), kv * kept, dense);
  print(gpu, head + "packed .95, with plan", bench.packed(kept, true), kv * kept, dense);
}

void run_variants(Gpu& gpu, int sequences, int kv_heads, int sets) {
  struct Variant {
    int warps, stages, ctas_of_sm, merge_quads, merge_threads;
    bool overlap;
  };
  Bench bench(gpu, sequences, kv_heads, 8, 131072, sets);
  const double kv = bench.kv_bytes();
  const DecodeConfig chosen = bench.config();
  for (const Variant& v :
       {Variant{4, 6, 1, chosen.merge_quads, chosen.merge_threads, false},
        Variant{4, 6, 1, chosen.merge_quads, chosen.merge_threads, true}, Variant{4, 6, 1, 32, 512, true},
        Variant{8, 3, 1, 8, 256, true}, Variant{4, 3, 1, chosen.merge_quads, chosen.merge_threads, true},
        Variant{4, 3, 2, chosen.merge_quads, chosen.merge_threads, true}}) {
    DecodeConfig config = chosen;
    config.warps = v.warps;
    config.stages = v.stages;
    config.ctas = gpu.multiprocessors * v.ctas_of_sm;
    config.merge_quads = v.merge_quads;
    config.merge_threads = v.merge_threads;
    bench.configure(config);
    bench.overlap(v.overlap);
    char text[80];
    std::snprintf(text, sizeof text, "N%d K%d warps %d/%d x%d merge %d/%d %s", sequences, kv_heads, v.warps,
                  v.stages, v.ctas_of_sm, v.merge_quads, v.merge_threads, v.overlap ? "overlap" : "");
    const double dense = bench.dense(false);
    print(gpu, text, dense, kv, 0);
    if (kv_heads == 8) {
      print(gpu, "   quest step", bench.quest(0.05, Bench::kScore | Bench::kSelect | Bench::kAttend),
            bench.quest_bytes(0.05), dense);
    }
  }
}

int run(int argc, char** argv) {
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  Gpu gpu;
  gpu.multiprocessors = properties.multiProcessorCount;
  std::printf("%s, %d multiprocessors\n", properties.name, gpu.multiprocessors);
  measure_read(gpu);
  for (int i = 1; i < argc; ++i) {
    const std::string suite = argv[i];
    if (suite == "one") {
      run_batch(gpu, "N1 K8", 1, 8, 131072, 4);
      run_batch(gpu, "N1 K1", 1, 1, 131072, 12);
    } else if (suite == "ordered") {  // slots of a head follow one another
      run_batch(gpu, "N1 K8 ordered", 1, 8, 131072, 4, false);
      run_batch(gpu, "N1 K1 ordered", 1, 1, 131072, 12, false);
    } else if (suite == "batch8") {
      run_batch(gpu, "N8 K8", 8, 8, 131072, 2);
    } else if (suite == "batch64") {
      run_batch(gpu, "N64 K8 32K", 64, 8, 32768, 1);
    } else if (suite == "variants") {
      run_variants(gpu, 1, 8, 4);
      run_variants(gpu, 1, 1, 12);
    } else {
      std::printf("suites: one ordered batch8 batch64 variants\n");
      return 2;
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const Error& error) {
    std::printf("%s\n", error.what());
    return static_cast<int>(error.code());
  }
}
