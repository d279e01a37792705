// A model on a GPU, for callers that are compiled with and without the CUDA backend: without it, every call
// is a UsageError that says so.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "io/model_config.hpp"
#include "parallel/communicator.hpp"
#include "runtime/core/memory.hpp"
#include "runtime/model/attention_plan.hpp"
#include "runtime/model/language_model.hpp"
#include "runtime/model/memory_needs.hpp"

namespace tessera {

// The processes of a machine take its GPUs in turn.
struct MachineShare {
  int local_rank = 0;
  int local_size = 1;
};

// UsageError where the backend cannot run the model, a method of the plan, the grid or the batch, or several
// ranks of one model would share a GPU; ResourceError where there is no GPU, or the run does not fit in the
// memory that is free on it.
void check_device_run(const ModelConfig& config, const AttentionPlan& plan, const RunShape& run,
                      const MachineShare& share);

struct DeviceReplicaOptions {
  std::string model_dir;
  std::optional<std::uint64_t> random_seed;  // draw weights; no checkpoint is read
  MachineShare share;
  // The ranks that share the model's heads, MLP and vocabulary; null: this one alone. Must outlive the
  // replica.
  Communicator* tp = nullptr;
  int world_rank = 0;    // for messages
  double timeout_s = 0;  // how long to wait for another rank; 0: for ever
};

// The weights on a GPU, in the model's dtype (bf16 or f16), and models over them.
class DeviceReplica {
 public:
  virtual ~DeviceReplica() = default;
  virtual std::int64_t weight_bytes() const = 0;
  // Keys and values have the dtype of the weights. One at a time; the replica must outlive it.
  virtual std::unique_ptr<LanguageModel> make_model(const RopeConfig& rope, const AttentionPlan& plan,
                                                    const RunShape& run) = 0;
};

// config must outlive the replica. Collective over options.tp.
std::unique_ptr<DeviceReplica> load_device_replica(const ModelConfig& config,
                                                   const DeviceReplicaOptions& options, MemoryMeter& meter);

}  // namespace tessera
