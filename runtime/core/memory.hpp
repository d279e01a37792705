// Owned memory, counted by what it is for. Owners are move-only; a meter is passed, never global.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "runtime/core/device.hpp"

namespace tessera {

enum class MemoryKind : std::uint8_t { kWeights, kKv, kWorkspace };
inline constexpr int kMemoryKinds = 3;
std::string_view name_of(MemoryKind kind);

// Bytes held now and at most, by kind. Thread-safe.
class MemoryMeter {
 public:
  void add(MemoryKind kind, std::int64_t bytes);  // negative when memory is given back
  std::int64_t current(MemoryKind kind) const { return current_[static_cast<int>(kind)].load(); }
  std::int64_t peak(MemoryKind kind) const { return peak_[static_cast<int>(kind)].load(); }
  std::int64_t peak_total() const { return peak_total_.load(); }

 private:
  std::array<std::atomic<std::int64_t>, kMemoryKinds> current_{};
  std::array<std::atomic<std::int64_t>, kMemoryKinds> peak_{};
  std::atomic<std::int64_t> current_total_{0};
  std::atomic<std::int64_t> peak_total_{0};
};

// Uninitialised bytes, 64-byte aligned. ResourceError names the size when it cannot be had.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::size_t bytes, MemoryKind kind, MemoryMeter& meter);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  float* floats() { return reinterpret_cast<float*>(data_); }
  const float* floats() const { return reinterpret_cast<const float*>(data_); }

 private:
  void release() noexcept;

  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  MemoryKind kind_ = MemoryKind::kWorkspace;
  MemoryMeter* meter_ = nullptr;
};

// A workspace that only grows: at least `count` floats, contents undefined after growth.
class FloatScratch {
 public:
  explicit FloatScratch(MemoryMeter& meter, MemoryKind kind = MemoryKind::kWorkspace)
      : meter_(&meter), kind_(kind) {}
  float* at_least(std::size_t count);

 private:
  MemoryMeter* meter_;
  MemoryKind kind_;
  Buffer buffer_;
};

std::int64_t peak_resident_bytes();  // of this process, so far

}  // namespace tessera
