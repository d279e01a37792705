#include <cuda_runtime.h>
#include <fmt/core.h>

#include "runtime/core/device.hpp"

namespace tessera {
namespace {

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

GpuInfo query_device(int ordinal) {
  GpuInfo gpu;
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, ordinal) != cudaSuccess) return gpu;
  gpu.name = properties.name;
  gpu.pci = fmt::format("{:04x}:{:02x}:{:02x}.0", properties.pciDomainID, properties.pciBusID,
                        properties.pciDeviceID);
  gpu.total_bytes = properties.totalGlobalMem;
  gpu.multiprocessors = properties.multiProcessorCount;
  gpu.compute_major = properties.major;
  gpu.compute_minor = properties.minor;
  std::size_t total = 0;
  if (cudaSetDevice(ordinal) != cudaSuccess || cudaMemGetInfo(&gpu.free_bytes, &total) != cudaSuccess) {
    gpu.free_bytes = 0;
  }
  return gpu;
}

}  // namespace

CudaInfo query_cuda() {
  CudaInfo info;
  info.built = true;
  int version = 0;
  if (cudaRuntimeGetVersion(&version) == cudaSuccess) info.runtime = version_text(version);
  if (cudaDriverGetVersion(&version) == cudaSuccess && version > 0) info.driver = version_text(version);
  int count = 0;
  if (cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
    info.problem = cudaGetErrorString(status);
    cudaGetLastError();
    return info;
  }
  for (int ordinal = 0; ordinal < count; ++ordinal) info.devices.push_back(query_device(ordinal));
  return info;
}

}  // namespace tessera
