#include <fmt/format.h>

#include "io/model_config.hpp"
#include "jobs/bench_gpu/gpu_benches.hpp"
#include "runtime/model/device_weights.hpp"
#include "runtime/model/op_times.hpp"

namespace tessera::cuda {

// Files are mapped anew each time, so that their pages have no entries yet; after the first time, which does
// not count, the system's page cache holds them. The whole has more than the stream: opening and checking the
// checkpoint, device memory, and pinned chunks.
void bench_load_weights(const BenchOptions& options, GpuTimer& gpu, const ShowRow& show) {
  const ModelConfig config = read_model_config(options.model);
  DeviceLoadOptions load;
  load.device = GpuTimer::device();
  load.dtype = config.dtype == DType::kF16 ? DType::kF16 : DType::kBF16;
  if (options.weights.random) load.random_seed = options.weights.seed;
  BenchRow whole, stream;
  whole.work = options.weights.random ? "weights drawn" : "checkpoint loaded";
  stream.work = "of it: streamed";
  for (int repeat = -1; repeat < options.repeats; ++repeat) {
    const auto start = HostClock::now();
    const DeviceWeights weights = load_device_weights(options.model, config, load, gpu.meter());
    const double seconds = seconds_since(start);
    if (repeat < 0) continue;
    whole.seconds.push_back(seconds);
    stream.seconds.push_back(weights.upload_seconds);
    whole.bytes = stream.bytes = static_cast<double>(weights.uploaded_bytes);
    whole.shape = fmt::format("{:.2f} GB", static_cast<double>(weights.bytes()) * 1e-9);
  }
  stream.shape = whole.shape;
  whole.limit = stream.limit = BenchLimit::kHostCopy;
  whole.sm_clock_mhz = stream.sm_clock_mhz = gpu.sm_clock_mhz();
  show(std::move(whole));
  if (!options.weights.random) show(std::move(stream));
}

}  // namespace tessera::cuda
