#include "runtime/core/error.hpp"
#include "runtime/core/tensor.hpp"
#include "runtime/model/device_model.hpp"
#include "runtime/model/device_replica.hpp"

namespace tessera {
namespace {

// The GPU of this process among those of the machine.
int ordinal_of(const CudaInfo& cuda, const MachineShare& share) {
  if (cuda.devices.empty()) {
    throw ResourceError("--device cuda: this machine has no GPU that answers ({}); `tessera info` says more",
                        cuda.problem);
  }
  return share.local_rank % static_cast<int>(cuda.devices.size());
}

void check_device_memory(const DeviceNeeds& needs, const CudaInfo& cuda, const MachineShare& share) {
  const GpuInfo& gpu = cuda.devices[static_cast<std::size_t>(ordinal_of(cuda, share))];
  const std::int64_t processes = ceil_div(share.local_size, static_cast<std::int64_t>(cuda.devices.size()));
  const std::int64_t asked = needs.total() * processes;
  if (asked <= static_cast<std::int64_t>(gpu.free_bytes)) return;
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  throw ResourceError(
      "GPU memory: {} process{} on {} need{} {:.2f} GiB (weights {:.2f}, KV {:.2f}, workspace {:.2f} each), "
      "but {:.2f} GiB are free; use more GPUs, a smaller --batch or a shorter --length",
      processes, processes == 1 ? "" : "es", gpu.name, processes == 1 ? "s" : "",
      static_cast<double>(asked) / kGiB, static_cast<double>(needs.weights) / kGiB,
      static_cast<double>(needs.kv) / kGiB, static_cast<double>(needs.workspace) / kGiB,
      static_cast<double>(gpu.free_bytes) / kGiB);
}

class GpuReplica final : public DeviceReplica {
 public:
  GpuReplica(const ModelConfig& config, const std::string& model_dir, const cuda::DeviceLoadOptions& load,
             MemoryMeter& meter)
      : config_(config),
        device_(load.device),
        meter_(meter),
        weights_(cuda::load_device_weights(model_dir, config, load, meter)) {}

  std::int64_t weight_bytes() const override { return weights_.bytes(); }

  std::unique_ptr<LanguageModel> make_model(const RopeConfig& rope, const AttentionPlan& plan,
                                            const RunShape& run) override {
    cuda::DeviceModelShape shape;
    shape.device = device_;
    shape.kv_slots = kv_slots_needed(config_, run, plan);
    shape.max_tokens = run.max_tokens;
    shape.batch = run.batch;
    return std::make_unique<cuda::DeviceModel>(config_, rope, weights_, shape, meter_, plan);
  }

 private:
  const ModelConfig& config_;
  Device device_;
  MemoryMeter& meter_;
  cuda::DeviceWeights weights_;
};

}  // namespace

void check_device_run(const ModelConfig& config, const AttentionPlan& plan, const RunShape& run,
                      const MachineShare& share) {
  if (run.grid.tp > 1 || run.grid.sp > 1) {
    throw UsageError(
        "--tp {} --sp {}: with --device cuda a model runs on one rank so far; use --tp 1 --sp 1, and more "
        "ranks "
        "for more samples at a time",
        run.grid.tp, run.grid.sp);
  }
  if (config.dtype == DType::kF32) {
    throw UsageError(
        "--device cuda: config.json says float32, and the kernels take bf16 or f16; use --device cpu");
  }
  cuda::DeviceModelShape shape;
  shape.batch = run.batch;
  cuda::check_device_model(config, plan, shape);
  const CudaInfo gpus = query_cuda();
  check_device_memory(device_bytes_needed(config, run, plan), gpus, share);
}

std::unique_ptr<DeviceReplica> load_device_replica(const ModelConfig& config,
                                                   const DeviceReplicaOptions& options, MemoryMeter& meter) {
  cuda::DeviceLoadOptions load;
  load.device = {DeviceKind::kCuda, ordinal_of(query_cuda(), options.share)};
  load.dtype = config.dtype;
  load.random_seed = options.random_seed;
  return std::make_unique<GpuReplica>(config, options.model_dir, load, meter);
}

}  // namespace tessera
