#include "runtime/core/memory.hpp"

#include <sys/resource.h>

#include <cstdlib>
#include <utility>

#include "runtime/core/error.hpp"

namespace tessera {
namespace {

constexpr std::size_t kAlignment = 64;

void raise_to(std::atomic<std::int64_t>& peak, std::int64_t value) {
  std::int64_t seen = peak.load();
  while (seen < value && !peak.compare_exchange_weak(seen, value)) {
  }
}

}  // namespace

std::string_view name_of(MemoryKind kind) {
  constexpr std::string_view kNames[] = {"weights", "kv", "workspace"};
  return kNames[static_cast<int>(kind)];
}

void MemoryMeter::add(MemoryKind kind, std::int64_t bytes) {
  const int index = static_cast<int>(kind);
  raise_to(peak_[index], current_[index] += bytes);
  raise_to(peak_total_, current_total_ += bytes);
}

Buffer::Buffer(std::size_t bytes, MemoryKind kind, MemoryMeter& meter) : bytes_(bytes), kind_(kind) {
  if (bytes == 0) return;
  const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (rounded < bytes || !(data_ = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded)))) {
    throw ResourceError(
        "memory: {} bytes for {} cannot be had; use more ranks, a shorter --length or a smaller --batch",
        bytes, name_of(kind));
  }
  meter_ = &meter;
  meter_->add(kind_, static_cast<std::int64_t>(bytes_));
}

Buffer::~Buffer() {
  release();
}

Buffer::Buffer(Buffer&& other) noexcept {
  *this = std::move(other);
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this == &other) return *this;
  release();
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  kind_ = other.kind_;
  meter_ = std::exchange(other.meter_, nullptr);
  return *this;
}

void Buffer::release() noexcept {
  if (data_ == nullptr) return;
  std::free(data_);
  meter_->add(kind_, -static_cast<std::int64_t>(bytes_));
  data_ = nullptr;
}

float* FloatScratch::at_least(std::size_t count) {
  if (count * sizeof(float) > buffer_.bytes()) {
    buffer_ = Buffer();  // give the old one back first: the two are never held together
    buffer_ = Buffer(count * sizeof(float), kind_, *meter_);
  }
  return buffer_.floats();
}

std::int64_t peak_resident_bytes() {
  rusage usage{};
  return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_maxrss * 1024LL : 0;
}

}  // namespace tessera
