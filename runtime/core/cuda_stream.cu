#include "runtime/core/cuda_stream.hpp"

#include <utility>

#include "runtime/core/cuda_check.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {

void throw_cuda_error(cudaError_t status, const char* call, const char* file, int line) {
  const char* words = cudaGetErrorString(status);
  cudaGetLastError();  // an error that does not stick must not show up in the next call
  switch (status) {
    case cudaErrorMemoryAllocation:
      throw ResourceError("CUDA: {}: {} ({}:{}); use more ranks, a shorter --length or a smaller --batch",
                          call, words, file, line);
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDevice:
    case cudaErrorDevicesUnavailable:
      throw ResourceError("CUDA: {}: {} ({}:{}); `tessera info` lists what this machine has", call, words,
                          file, line);
    default:
      throw InternalError("CUDA: {}: {} ({}) at {}:{}", call, words, cudaGetErrorName(status), file, line);
  }
}

DeviceScope::DeviceScope(Device device) : current_(device.ordinal) {
  CUDA_CHECK(cudaGetDevice(&previous_));
  if (current_ != previous_) CUDA_CHECK(cudaSetDevice(current_));
}

DeviceScope::~DeviceScope() {
  if (current_ != previous_) cudaSetDevice(previous_);
}

CudaStream::CudaStream(Device device) : device_(device) {
  TESSERA_CHECK(device.kind == DeviceKind::kCuda);
  const DeviceScope scope(device);
  cudaStream_t stream = nullptr;
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  native_ = stream;
}

CudaStream::~CudaStream() {
  release();
}

CudaStream::CudaStream(CudaStream&& other) noexcept
    : device_(other.device_), native_(std::exchange(other.native_, nullptr)) {}

CudaStream& CudaStream::operator=(CudaStream&& other) noexcept {
  if (this == &other) return *this;
  release();
  device_ = other.device_;
  native_ = std::exchange(other.native_, nullptr);
  return *this;
}

void CudaStream::release() noexcept {
  if (native_ == nullptr) return;
  cudaStreamSynchronize(static_cast<cudaStream_t>(native_));
  cudaStreamDestroy(static_cast<cudaStream_t>(native_));
  native_ = nullptr;
}

void CudaStream::synchronize() const {
  cuda::synchronize(view());
}

void synchronize(StreamView stream) {
  CUDA_CHECK(cudaStreamSynchronize(native(stream)));
}

CudaEvent::CudaEvent(Device device, EventUse use) : device_(device) {
  TESSERA_CHECK(device.kind == DeviceKind::kCuda);
  const DeviceScope scope(device);
  cudaEvent_t event = nullptr;
  CUDA_CHECK(
      cudaEventCreateWithFlags(&event, use == EventUse::kOrder ? cudaEventDisableTiming : cudaEventDefault));
  native_ = event;
}

CudaEvent::~CudaEvent() {
  release();
}

CudaEvent::CudaEvent(CudaEvent&& other) noexcept
    : device_(other.device_), native_(std::exchange(other.native_, nullptr)) {}

CudaEvent& CudaEvent::operator=(CudaEvent&& other) noexcept {
  if (this == &other) return *this;
  release();
  device_ = other.device_;
  native_ = std::exchange(other.native_, nullptr);
  return *this;
}

void CudaEvent::release() noexcept {
  if (native_ != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(native_));
  native_ = nullptr;
}

void CudaEvent::record(StreamView stream) {
  CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(native_), cuda::native(stream)));
}

void CudaEvent::record_in_graph(StreamView stream) {
  CUDA_CHECK(cudaEventRecordWithFlags(static_cast<cudaEvent_t>(native_), cuda::native(stream),
                                      cudaEventRecordExternal));
}

void CudaEvent::hold(StreamView stream) const {
  CUDA_CHECK(cudaStreamWaitEvent(cuda::native(stream), static_cast<cudaEvent_t>(native_), 0));
}

bool CudaEvent::done() const {
  const cudaError_t status = cudaEventQuery(static_cast<cudaEvent_t>(native_));
  if (status == cudaErrorNotReady) return false;
  CUDA_CHECK(status);
  return true;
}

void CudaEvent::synchronize() const {
  CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(native_)));
}

double milliseconds_between(const CudaEvent& first, const CudaEvent& last) {
  last.synchronize();
  float milliseconds = 0;
  CUDA_CHECK(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(first.native()),
                                  static_cast<cudaEvent_t>(last.native())));
  return milliseconds;
}

}  // namespace tessera::cuda
