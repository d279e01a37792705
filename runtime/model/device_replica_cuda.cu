#include <cstdlib>
#include <optional>

#include "parallel/nccl_communicator.hpp"
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
  GpuReplica(const ModelConfig& config, const DeviceReplicaOptions& options, const Device& device,
             MemoryMeter& meter)
      : config_(config), device_(device), meter_(meter), nccl_(join(options, device)) {
    cuda::DeviceLoadOptions load;
    load.device = device;
    load.dtype = config.dtype;
    load.random_seed = options.random_seed;
    if (nccl_) {
      load.tp_rank = nccl_->rank();
      load.tp_size = nccl_->size();
      ranks_ = {load.tp_rank, load.tp_size, &*nccl_, options.tp};
    }
    weights_ = cuda::load_device_weights(options.model_dir, config, load, meter);
  }

  std::int64_t weight_bytes() const override { return weights_.bytes(); }

  std::unique_ptr<LanguageModel> make_model(const RopeConfig& rope, const AttentionPlan& plan,
                                            const RunShape& run) override {
    cuda::DeviceModelShape shape;
    shape.device = device_;
    shape.kv_slots = kv_slots_needed(config_, run, plan);
    shape.max_tokens = run.max_tokens;
    shape.batch = run.batch;
    shape.tp = ranks_;
    return std::make_unique<cuda::DeviceModel>(config_, rope, weights_, shape, meter_, plan);
  }

 private:
  // The communicator of the model's ranks; none where this one is alone.
  static std::optional<cuda::NcclCommunicator> join(const DeviceReplicaOptions& options, Device device) {
    if (options.tp == nullptr || options.tp->size() == 1) return std::nullopt;
    cuda::NcclOptions nccl;
    nccl.device = device;
    nccl.name = "tp";
    nccl.world_rank = options.world_rank;
    // Its message says more than that of a watchdog with the same timeout: it shall come first.
    nccl.timeout = std::chrono::milliseconds(static_cast<std::int64_t>(options.timeout_s * 900));
    return std::make_optional<cuda::NcclCommunicator>(*options.tp, nccl);
  }

  const ModelConfig& config_;
  Device device_;
  MemoryMeter& meter_;
  std::optional<cuda::NcclCommunicator> nccl_;
  cuda::TensorRanks ranks_;
  cuda::DeviceWeights weights_;
};

// NCCL takes one rank a GPU. It is told otherwise by another NCCL_HOSTID for each rank, as tests do.
void check_shared_model(const RunShape& run, const CudaInfo& gpus, const MachineShare& share) {
  if (run.grid.tp == 1) return;
  if (cuda::nccl_version().empty()) {
    throw UsageError(
        "--tp {}: this binary was built without NCCL, by which GPUs exchange data: build it where nccl.h and "
        "libnccl are found (libnccl-dev), or use --tp 1",
        run.grid.tp);
  }
  if (share.local_size > static_cast<int>(gpus.devices.size()) && std::getenv("NCCL_HOSTID") == nullptr) {
    throw UsageError(
        "--tp {}: {} ranks on this machine share {} GPU{}, but the ranks of one model need a GPU each; start "
        "as many ranks as there are GPUs (for a test on one GPU give each rank an NCCL_HOSTID of its own)",
        run.grid.tp, share.local_size, gpus.devices.size(), gpus.devices.size() == 1 ? "" : "s");
  }
}

}  // namespace

void check_device_run(const ModelConfig& config, const AttentionPlan& plan, const RunShape& run,
                      const MachineShare& share) {
  // Sums over the ranks of a model (device_tensor_cuda.cu) are built but have not been run on GPUs.
  if (run.grid.tp > 1 || run.grid.sp > 1) {
    throw UsageError(
        "--tp {} --sp {}: with --device cuda a model runs on one rank so far; use --tp 1 --sp 1, and more "
        "ranks for more samples at a time",
        run.grid.tp, run.grid.sp);
  }
  if (config.dtype == DType::kF32) {
    throw UsageError(
        "--device cuda: config.json says float32, and the kernels take bf16 or f16; use --device cpu");
  }
  cuda::DeviceModelShape shape;
  shape.batch = run.batch;
  cuda::check_device_model(config, plan, shape);
  if (plan.share_group && run.grid.tp > config.kv_heads &&
      plan.prefill.method().unit == SelectUnit::kColumnsAndDiagonals) {
    throw UsageError(
        "--share-group --prefill {} --tp {}: a group of query heads then lies on several GPUs, which do not "
        "add "
        "up what its heads estimate; use --tp {} or fewer, or leave --share-group out",
        plan.prefill.method().name, run.grid.tp, config.kv_heads);
  }
  const CudaInfo gpus = query_cuda();
  check_shared_model(run, gpus, share);
  check_device_memory(device_bytes_needed(config, run, plan), gpus, share);
}

std::unique_ptr<DeviceReplica> load_device_replica(const ModelConfig& config,
                                                   const DeviceReplicaOptions& options, MemoryMeter& meter) {
  const Device device{DeviceKind::kCuda, ordinal_of(query_cuda(), options.share)};
  return std::make_unique<GpuReplica>(config, options, device, meter);
}

}  // namespace tessera
