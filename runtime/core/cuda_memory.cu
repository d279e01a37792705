#include "runtime/core/cuda_memory.hpp"

#include <utility>

#include "runtime/core/cuda_check.hpp"
#include "runtime/core/cuda_stream.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {
namespace {

constexpr std::size_t kSmallest = 512;  // bytes of the smallest pool block

// Sizes of pool blocks: 1, 1.25, 1.5, 1.75 times a power of two, so that at most a fifth of a block is unused
// and requests that grow token by token meet few sizes.
std::size_t pool_size(std::size_t bytes) {
  if (bytes <= kSmallest) return kSmallest;
  std::size_t power = kSmallest;
  while (power <= (bytes - 1) / 2) power *= 2;
  const std::size_t step = power / 4;
  return (bytes + step - 1) / step * step;
}

}  // namespace

DeviceBuffer::DeviceBuffer(std::size_t bytes, Device device, MemoryKind kind, MemoryMeter& meter)
    : bytes_(bytes), device_(device), kind_(kind) {
  TESSERA_CHECK(device.kind == DeviceKind::kCuda);
  if (bytes == 0) return;
  const DeviceScope scope(device);
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    std::size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    throw ResourceError(
        "GPU {} memory: {} bytes for {} cannot be had ({} of {} free); use more ranks, a shorter --length or "
        "a "
        "smaller --batch",
        device.ordinal, bytes, name_of(kind), free, total);
  }
  CUDA_CHECK(status);
  data_ = static_cast<std::byte*>(data);
  meter_ = &meter;
  meter_->add(kind_, static_cast<std::int64_t>(bytes_));
}

DeviceBuffer::~DeviceBuffer() {
  release();
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept {
  *this = std::move(other);
}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  if (this == &other) return *this;
  release();
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  device_ = other.device_;
  kind_ = other.kind_;
  meter_ = std::exchange(other.meter_, nullptr);
  return *this;
}

void DeviceBuffer::release() noexcept {
  if (data_ == nullptr) return;
  cudaFree(data_);
  meter_->add(kind_, -static_cast<std::int64_t>(bytes_));
  data_ = nullptr;
}

PinnedBuffer::PinnedBuffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* data = nullptr;
  const cudaError_t status = cudaHostAlloc(&data, bytes, cudaHostAllocPortable);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw ResourceError("host memory: {} bytes cannot be page-locked", bytes);
  }
  CUDA_CHECK(status);
  data_ = static_cast<std::byte*>(data);
}

PinnedBuffer::~PinnedBuffer() {
  release();
}

PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept {
  *this = std::move(other);
}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  if (this == &other) return *this;
  release();
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

void PinnedBuffer::release() noexcept {
  if (data_ != nullptr) cudaFreeHost(data_);
  data_ = nullptr;
}

StreamPool::StreamPool(StreamView stream, MemoryMeter& meter, MemoryKind kind)
    : stream_(stream), meter_(&meter), kind_(kind) {
  TESSERA_CHECK(stream.device.kind == DeviceKind::kCuda);
}

StreamPool::~StreamPool() {
  cudaStreamSynchronize(native(stream_));
}

StreamPool::Block StreamPool::take(std::size_t bytes) {
  Block block;
  if (bytes == 0) return block;
  const std::size_t size = pool_size(bytes);
  // A block up to twice as large serves too: sizes then settle where a shape that shrinks follows a large
  // one.
  auto found = free_.lower_bound(size);
  if (found != free_.end() && found->first > 2 * size) found = free_.end();
  DeviceBuffer buffer;
  if (found != free_.end()) {
    buffer = std::move(found->second);
    free_.erase(found);
  } else {
    ++allocations_;
    try {
      buffer = DeviceBuffer(size, stream_.device, kind_, *meter_);
    } catch (const ResourceError&) {
      if (free_.empty()) throw;
      trim();
      buffer = DeviceBuffer(size, stream_.device, kind_, *meter_);
    }
    held_bytes_ += size;
  }
  block.pool_ = this;
  block.data_ = buffer.data();
  block.bytes_ = bytes;
  used_.emplace(buffer.data(), std::move(buffer));
  return block;
}

void StreamPool::give_back(std::byte* data) noexcept {
  const auto found = used_.find(data);
  if (found == used_.end()) return;
  const std::size_t size = found->second.bytes();
  free_.emplace(size, std::move(found->second));
  used_.erase(found);
}

void StreamPool::trim() {
  synchronize(stream_);
  for (const auto& [size, buffer] : free_) held_bytes_ -= size;
  free_.clear();
}

StreamPool::Block::Block(Block&& other) noexcept {
  *this = std::move(other);
}

StreamPool::Block& StreamPool::Block::operator=(Block&& other) noexcept {
  if (this == &other) return *this;
  release();
  pool_ = std::exchange(other.pool_, nullptr);
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

void StreamPool::Block::release() noexcept {
  if (data_ != nullptr) pool_->give_back(data_);
  data_ = nullptr;
}

void copy_to_device(void* device, const void* host, std::size_t bytes, StreamView stream) {
  if (bytes > 0) CUDA_CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, native(stream)));
}

void copy_to_host(void* host, const void* device, std::size_t bytes, StreamView stream) {
  if (bytes > 0) CUDA_CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, native(stream)));
}

void copy_on_device(void* target, const void* source, std::size_t bytes, StreamView stream) {
  if (bytes > 0) CUDA_CHECK(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, native(stream)));
}

void copy_rows_on_device(void* target, std::size_t target_stride, const void* source,
                         std::size_t source_stride, std::size_t row_bytes, std::size_t rows,
                         StreamView stream) {
  if (row_bytes == 0 || rows == 0) return;
  CUDA_CHECK(cudaMemcpy2DAsync(target, target_stride, source, source_stride, row_bytes, rows,
                               cudaMemcpyDeviceToDevice, native(stream)));
}

void fill_bytes(void* device, int value, std::size_t bytes, StreamView stream) {
  if (bytes > 0) CUDA_CHECK(cudaMemsetAsync(device, value, bytes, native(stream)));
}

}  // namespace tessera::cuda
