#include "runtime/core/error.hpp"
#include "runtime/model/device_replica.hpp"

namespace tessera {
namespace {

[[noreturn]] void refuse() {
  throw UsageError(
      "--device cuda: this binary was built without the CUDA backend; build it where nvcc is found, or use "
      "--device cpu");
}

}  // namespace

void check_device_run(const ModelConfig&, const AttentionPlan&, const RunShape&, const MachineShare&) {
  refuse();
}

std::unique_ptr<DeviceReplica> load_device_replica(const ModelConfig&, const DeviceReplicaOptions&,
                                                   MemoryMeter&) {
  refuse();
}

}  // namespace tessera
