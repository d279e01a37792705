// `tessera info`: what the binary was built from and the machine each rank runs on. HostInfo also fills the
// rows of /attempts in the trace.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>

#include "jobs/options.hpp"
#include "parallel/communicator.hpp"
#include "runtime/core/device.hpp"

namespace tessera {

// The machine and the place on it of this process. Unknown texts are empty, unknown numbers −1 or 0.
struct HostInfo {
  std::string host;
  std::string cpu;           // "AMD EPYC 9654 96-Core Processor"
  int cores = 0;             // physical cores of the machine
  int hardware_threads = 0;  // of the machine
  std::string bound;         // hardware threads this process may run on: "0-3,8"
  int bound_count = 0;
  int bound_cores = 0;                // physical cores among them
  int numa_nodes = 0;                 // of the machine
  std::string numa;                   // nodes of the bound threads: "0", "0-1"
  std::int64_t memory_total = 0;      // bytes
  std::int64_t memory_available = 0;  // bytes, now, to this process
  std::int64_t memory_limit = 0;      // bytes, the smallest of a control group; 0: none
  std::string device_name;            // the GPU's name, or the CPU's
  std::string pci;                    // of the GPU; empty on the CPU
};
std::string processor_name();  // HostInfo::cpu alone, without a look at the machine
HostInfo collect_host_info(const Device& device = {});

// What this binary was built from and linked to.
struct BuildInfo {
  std::string version;
  std::string git_revision;
  bool git_dirty = false;
  std::string compiler;
  std::string build_type;
  std::string mpi;   // the library's own words, first line
  std::string hdf5;  // "1.10.8"
  std::string blas;
  std::string cuda_compiler;  // empty: built without CUDA
  std::string nccl;           // "2.28.9", as loaded; empty without NCCL
};
BuildInfo collect_build_info();

// Called by every rank; rank 0 writes.
void run_info(const InfoOptions& options, Communicator& world, std::ostream& out);

}  // namespace tessera
