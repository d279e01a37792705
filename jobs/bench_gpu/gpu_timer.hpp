// One GPU of a bench: its stream and memory, timed work, and the limits that work is held against.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "jobs/bench_table.hpp"
#include "runtime/core/cuda_memory.hpp"
#include "runtime/core/cuda_stream.hpp"
#include "runtime/core/device.hpp"
#include "runtime/core/memory.hpp"

namespace tessera::cuda {

struct GpuTimes {
  std::vector<double> seconds;  // of each repetition
  double sm_clock_mhz = 0;      // median of measurements right after each
};

class GpuTimer {
 public:
  explicit GpuTimer(int multiprocessors);

  static Device device() { return {DeviceKind::kCuda, 0}; }
  StreamView stream() const { return stream_.view(); }
  MemoryMeter& meter() { return meter_; }
  int multiprocessors() const { return multiprocessors_; }

  DeviceBuffer empty(std::size_t bytes);
  DeviceBuffer zeros(std::size_t bytes);
  // bf16, approximately normal with variance 1.
  DeviceBuffer normal(std::size_t bytes, std::uint64_t seed);
  template <class T>
  DeviceBuffer upload(const std::vector<T>& values) {
    DeviceBuffer buffer = empty(values.size() * sizeof(T));
    copy_to_device(buffer.data(), values.data(), values.size() * sizeof(T), stream());
    stream_.synchronize();  // small copies return before they arrive
    return buffer;
  }

  // Each work in turn, `repeats` times round after two rounds that do not count, between events.
  std::vector<GpuTimes> time_in_turns(std::span<const std::function<void()>> works, int repeats);
  GpuTimes time(const std::function<void()>& work, int repeats);
  // Seconds of one step of work that queues `steps` of them, captured and replayed as a graph.
  GpuTimes time_graph(int steps, const std::function<void()>& work, int repeats);

  // Of a multiprocessor, counted for 100 us once the work of the stream is done.
  double sm_clock_mhz();

  void measure_memory(BenchLimits& limits);
  void measure_gemm(BenchLimits& limits);
  void measure_host_copy(BenchLimits& limits);

 private:
  int multiprocessors_;
  MemoryMeter meter_;
  CudaStream stream_;
  DeviceBuffer clock_;  // (2) uint64
};

}  // namespace tessera::cuda
