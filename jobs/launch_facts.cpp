#include "jobs/launch_facts.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <cstdint>
#include <cstdlib>

#include "io/mapped_file.hpp"
#include "jobs/info.hpp"
#include "parallel/nccl_communicator.hpp"
#include "runtime/core/device.hpp"

namespace tessera {
namespace {

// OPENBLAS_CORETYPE chooses OpenBLAS's kernels: ranks with others round differently, and replicas of the same
// row, from which ranks decide alike, would no longer be the same.
constexpr const char* kVariables[] = {"OPENBLAS_CORETYPE"};

std::string revision_text(const BuildInfo& build) {
  if (!build.git_dirty && build.git_revision != "unknown") return build.git_revision;
  const MappedFile program = MappedFile::open("/proc/self/exe");
  return fmt::format("{} with changes, program {:016x}", build.git_revision,
                     static_cast<std::uint64_t>(XXH3_64bits(program.data(), program.size())));
}

bool runs_on_gpu(const ParsedCommand& command) {
  const auto* eval = std::get_if<EvalOptions>(&command);
  return eval != nullptr && eval->device == DeviceKind::kCuda;
}

}  // namespace

std::vector<Fact> launch_facts(const ParsedCommand& command, const std::string& options) {
  const BuildInfo build = collect_build_info();
  std::vector<Fact> facts = {{"options", options},
                             {"version", build.version},
                             {"revision", revision_text(build)},
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
    facts.push_back({"NCCL", cuda::nccl_version()});
  }
  return facts;
}

std::string unlike_processors_warning(Communicator& world) {
  if (std::getenv("OPENBLAS_CORETYPE") != nullptr)
    return {};  // on all ranks the same: the handshake saw to it
  const Fact processor{"processor", processor_name()};
  const std::string differences = gather_differences(world, {&processor, 1});
  if (differences.empty()) return {};
  return fmt::format(
      "{}: OpenBLAS chooses its kernels by processor, and ranks that round differently may disagree; set "
      "OPENBLAS_CORETYPE to one that all have",
      differences);
}

}  // namespace tessera
