// Where work runs. Kernels take a StreamView in their Params; the stream is never implicit.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace tessera {

enum class DeviceKind { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int ordinal = 0;  // CUDA device of this process; 0 on the CPU
};

// A borrowed stream: on the CPU work is done when the call returns and native is null.
struct StreamView {
  Device device;
  void* native = nullptr;  // cudaStream_t
};

struct GpuInfo {
  std::string name;
  std::string pci;  // "0000:1b:00.0"
  std::size_t total_bytes = 0;
  std::size_t free_bytes = 0;
  int multiprocessors = 0;
  int compute_major = 0;
  int compute_minor = 0;
};

struct CudaInfo {
  bool built = false;   // this binary has the CUDA backend
  std::string runtime;  // "13.0"; empty without the backend
  std::string driver;   // "13.0"; empty where no driver answers
  std::string problem;  // why there are no devices, in the driver's words; empty where there are
  std::vector<GpuInfo> devices;
};

// Never throws: a machine without a GPU has an empty list and a problem text.
CudaInfo query_cuda();

}  // namespace tessera
