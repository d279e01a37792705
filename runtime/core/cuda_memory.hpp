// Owned device and pinned memory, and a pool for workspaces. Needs no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "runtime/core/device.hpp"
#include "runtime/core/memory.hpp"

namespace tessera::cuda {

// Uninitialised device memory, 256-byte aligned, counted by a meter. Getting and giving it back stops the
// device: for what lives long. ResourceError names the size when it cannot be had.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(std::size_t bytes, Device device, MemoryKind kind, MemoryMeter& meter);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  void release() noexcept;

  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  Device device_;
  MemoryKind kind_ = MemoryKind::kWorkspace;
  MemoryMeter* meter_ = nullptr;
};

// Page-locked host memory: copies from and to it run beside kernels. Every device sees it.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(std::size_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(PinnedBuffer&& other) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  void release() noexcept;

  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Workspaces of one stream. A block that is given back may be handed out again at once: what uses it next
// comes later in the same stream. Nothing is allocated once every size in use has been seen, so that in
// steady state (and while a graph is captured) taking a block touches no CUDA call. Not thread-safe: one
// thread feeds a stream. A captured graph keeps the addresses: whoever owns the graph keeps the blocks.
class StreamPool {
 public:
  StreamPool(StreamView stream, MemoryMeter& meter, MemoryKind kind = MemoryKind::kWorkspace);
  ~StreamPool();  // waits for the stream; every block must have been given back
  StreamPool(const StreamPool&) = delete;
  StreamPool& operator=(const StreamPool&) = delete;

  // A borrowed piece of the pool; the destructor gives it back.
  class Block {
   public:
    Block() = default;
    ~Block() { release(); }
    Block(Block&& other) noexcept;
    Block& operator=(Block&& other) noexcept;
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    std::byte* data() const { return data_; }
    std::size_t bytes() const { return bytes_; }  // as asked for
    template <typename T>
    T* as() const {
      return reinterpret_cast<T*>(data_);
    }

   private:
    friend class StreamPool;
    void release() noexcept;

    StreamPool* pool_ = nullptr;
    std::byte* data_ = nullptr;
    std::size_t bytes_ = 0;
  };

  // Uninitialised, 256-byte aligned; 0 bytes: a null block.
  Block take(std::size_t bytes);
  template <typename T>
  Block take_array(std::int64_t count) {
    return take(static_cast<std::size_t>(count) * sizeof(T));
  }

  void trim();  // waits for the stream and gives unused memory back to the device
  StreamView stream() const { return stream_; }
  std::int64_t allocations() const { return allocations_; }  // calls of the device's allocator so far
  std::size_t held_bytes() const { return held_bytes_; }

 private:
  void give_back(std::byte* data) noexcept;

  StreamView stream_;
  MemoryMeter* meter_;
  MemoryKind kind_;
  std::multimap<std::size_t, DeviceBuffer> free_;  // by size
  std::map<std::byte*, DeviceBuffer> used_;
  std::int64_t allocations_ = 0;
  std::size_t held_bytes_ = 0;
};

// Ordered by the stream. The host side must be pinned for the copy to run beside the caller, and stay
// unchanged until the stream is past it.
void copy_to_device(void* device, const void* host, std::size_t bytes, StreamView stream);
void copy_to_host(void* host, const void* device, std::size_t bytes, StreamView stream);
void copy_on_device(void* target, const void* source, std::size_t bytes, StreamView stream);
// `rows` pieces of row_bytes each, so many bytes apart.
void copy_rows_on_device(void* target, std::size_t target_stride, const void* source,
                         std::size_t source_stride, std::size_t row_bytes, std::size_t rows,
                         StreamView stream);
void fill_bytes(void* device, int value, std::size_t bytes, StreamView stream);

}  // namespace tessera::cuda
