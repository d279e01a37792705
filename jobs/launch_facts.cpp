#include "jobs/launch_facts.hpp"

#include <cstdlib>

#include "jobs/info.hpp"
#include "runtime/core/device.hpp"

namespace tessera {
namespace {

// OPENBLAS_CORETYPE chooses OpenBLAS's kernels: ranks with others round differently, and replicas of the same
// row, from which ranks decide alike, would no longer be the same.
constexpr const char* kVariables[] = {"OPENBLAS_CORETYPE"};

bool runs_on_gpu(const ParsedCommand& command) {
  const auto* eval = std::get_if<EvalOptions>(&command);
  return eval != nullptr && eval->device == DeviceKind::kCuda;
}

}  // namespace

std::vector<Fact> launch_facts(const ParsedCommand& command, const std::string& options) {
  const BuildInfo build = collect_build_info();
  std::vector<Fact> facts = {{"options", options},
                             {"version", build.version},
                             {"revision", build.git_revision + (build.git_dirty ? " with changes" : "")},
                             {"build type", build.build_type},
                             {"compiler", build.compiler},
                             {"MPI library", build.mpi},
                             {"HDF5", build.hdf5}};
  for (const char* name : kVariables) {
    const char* value = std::getenv(name);
    facts.push_back({name, value == nullptr ? "(not set)" : value});
  }
  if (runs_on_gpu(command)) {
    const CudaInfo cuda = query_cuda();
    facts.push_back({"CUDA runtime", cuda.runtime});
    facts.push_back({"CUDA driver", cuda.driver});
  }
  return facts;
}

}  // namespace tessera
