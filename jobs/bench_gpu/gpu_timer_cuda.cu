#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "jobs/bench_gpu/gpu_timer.hpp"
#include "runtime/core/cuda_check.hpp"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/device_gemm.hpp"

namespace tessera::cuda {
namespace {

constexpr int kWarmRounds = 2;
constexpr std::size_t kMemoryBytes = std::size_t{2} << 30;
constexpr std::size_t kHostBytes = std::size_t{256} << 20;
constexpr std::int64_t kGemmEdge = 8192;
constexpr int kLimitRepeats = 11;

__global__ void fill_normal(__nv_bfloat16* values, std::size_t count, std::uint64_t seed) {
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count; i += stride) {
    std::uint64_t bits = (i + 1) * 0x9e3779b97f4a7c15ULL + seed;  // SplitMix64
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9ULL;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebULL;
    bits ^= bits >> 31;
    float sum = 0;
    for (int part = 0; part < 4; ++part)
      sum += static_cast<float>(bits >> (16 * part) & 0xFFFF) * (1.0F / 65536.0F);
    values[i] = __float2bfloat16((sum - 2.0F) * 1.7320508F);
  }
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

__device__ std::uint64_t nanoseconds() {
  std::uint64_t time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
  return time;
}

// (2) cycles of a multiprocessor and the nanoseconds that they took.
__global__ void count_cycles(std::uint64_t* counts) {
  constexpr std::uint64_t kNanoseconds = 100'000;
  const std::uint64_t begin = nanoseconds();
  const long long first = clock64();
  std::uint64_t now = begin;
  while (now - begin < kNanoseconds) now = nanoseconds();
  counts[0] = static_cast<std::uint64_t>(clock64() - first);
  counts[1] = now - begin;
}

double seconds_between(const CudaEvent& begin, const CudaEvent& end) {
  return milliseconds_between(begin, end) * 1e-3;
}

// A graph that lives for one measurement.
class Replay {
 public:
  Replay(StreamView stream, const std::function<void()>& work) : stream_(stream) {
    cudaGraph_t graph = nullptr;
    CUDA_CHECK(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal));
    work();
    CUDA_CHECK(cudaStreamEndCapture(native(stream), &graph));
    const cudaError_t made = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    CUDA_CHECK(made);
  }
  ~Replay() { cudaGraphExecDestroy(executable_); }
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

  void launch() { CUDA_CHECK(cudaGraphLaunch(executable_, native(stream_))); }

 private:
  StreamView stream_;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

GpuTimer::GpuTimer(int multiprocessors)
    : multiprocessors_(multiprocessors), stream_(device()), clock_(empty(2 * sizeof(std::uint64_t))) {}

DeviceBuffer GpuTimer::empty(std::size_t bytes) {
  return DeviceBuffer(bytes, device(), MemoryKind::kWorkspace, meter_);
}

DeviceBuffer GpuTimer::zeros(std::size_t bytes) {
  DeviceBuffer buffer = empty(bytes);
  fill_bytes(buffer.data(), 0, bytes, stream());
  return buffer;
}

DeviceBuffer GpuTimer::normal(std::size_t bytes, std::uint64_t seed) {
  DeviceBuffer buffer = empty(bytes);
  LaunchShape shape;
  shape.grid = dim3(2048);
  shape.block = dim3(256);
  launch(fill_normal, shape, stream(), buffer.as<__nv_bfloat16>(), bytes / sizeof(__nv_bfloat16),
         seed * 0xda942042e4dd58b5ULL);
  return buffer;
}

double GpuTimer::sm_clock_mhz() {
  LaunchShape shape;
  shape.grid = dim3(1);
  shape.block = dim3(1);
  launch(count_cycles, shape, stream(), clock_.as<std::uint64_t>());
  std::uint64_t counts[2];
  copy_to_host(counts, clock_.data(), sizeof counts, stream());
  stream_.synchronize();
  return static_cast<double>(counts[0]) / static_cast<double>(counts[1]) * 1e3;
}

std::vector<GpuTimes> GpuTimer::time_in_turns(std::span<const std::function<void()>> works, int repeats) {
  std::vector<GpuTimes> times(works.size());
  std::vector<std::vector<double>> clocks(works.size());
  CudaEvent begin(device(), EventUse::kTiming);
  CudaEvent end(device(), EventUse::kTiming);
  for (int round = -kWarmRounds; round < repeats; ++round) {
    for (std::size_t i = 0; i < works.size(); ++i) {
      begin.record(stream());
      works[i]();
      end.record(stream());
      const double clock = sm_clock_mhz();
      if (round < 0) continue;
      times[i].seconds.push_back(seconds_between(begin, end));
      clocks[i].push_back(clock);
    }
  }
  for (std::size_t i = 0; i < works.size(); ++i) times[i].sm_clock_mhz = median_of(clocks[i]);
  return times;
}

GpuTimes GpuTimer::time(const std::function<void()>& work, int repeats) {
  return time_in_turns({&work, 1}, repeats).front();
}

GpuTimes GpuTimer::time_graph(int steps, const std::function<void()>& work, int repeats) {
  work();  // the first use of each kernel stays outside of the capture
  stream_.synchronize();
  Replay replay(stream(), work);
  GpuTimes times = time([&] { replay.launch(); }, repeats);
  for (double& seconds : times.seconds) seconds /= steps;
  return times;
}

void GpuTimer::measure_memory(BenchLimits& limits) {
  DeviceBuffer data = normal(kMemoryBytes, 9);
  DeviceBuffer target = empty(kMemoryBytes / 2);
  DeviceBuffer sink = empty(sizeof(std::uint32_t));
  for (const int ctas_of_sm : {2, 4}) {
    LaunchShape shape;
    shape.grid = dim3(static_cast<unsigned>(multiprocessors_ * ctas_of_sm));
    shape.block = dim3(512);
    const GpuTimes times = time(
        [&] {
          launch(read_all, shape, stream(), data.as<uint4>(), data.bytes() / sizeof(uint4),
                 sink.as<std::uint32_t>());
        },
        kLimitRepeats);
    limits.read_bytes_per_s =
        std::max(limits.read_bytes_per_s, static_cast<double>(data.bytes()) / median_of(times.seconds));
  }
  const GpuTimes copy =
      time([&] { copy_on_device(target.data(), data.data(), target.bytes(), stream()); }, kLimitRepeats);
  limits.copy_bytes_per_s = 2.0 * static_cast<double>(target.bytes()) / median_of(copy.seconds);
}

void GpuTimer::measure_host_copy(BenchLimits& limits) {
  PinnedBuffer source(kHostBytes);
  std::fill_n(source.data(), source.bytes(), std::byte{7});
  DeviceBuffer target = empty(kHostBytes);
  const GpuTimes times =
      time([&] { copy_to_device(target.data(), source.data(), source.bytes(), stream()); }, kLimitRepeats);
  limits.host_copy_bytes_per_s = static_cast<double>(kHostBytes) / median_of(times.seconds);
}

void GpuTimer::measure_gemm(BenchLimits& limits) {
  constexpr std::size_t kBytes = static_cast<std::size_t>(kGemmEdge * kGemmEdge) * 2;
  DeviceBuffer x = normal(kBytes, 1);
  DeviceBuffer weight = normal(kBytes, 2);
  DeviceBuffer y = empty(kBytes);
  StreamPool pool(stream(), meter_);
  DeviceGemm gemm(pool);
  LinearParams p;
  p.rows = p.inner = p.columns = kGemmEdge;
  p.x = x.data();
  p.weight = weight.data();
  p.y = y.data();
  const GpuTimes times = time([&] { gemm.linear_by_library(p); }, kLimitRepeats);
  const double edge = static_cast<double>(kGemmEdge);
  limits.gemm_flop_per_s = 2 * edge * edge * edge / median_of(times.seconds);
  limits.gemm_sm_clock_mhz = times.sm_clock_mhz;
}

}  // namespace tessera::cuda
