#include "runtime/core/cuda_upload.hpp"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "runtime/core/error.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {
namespace {

#if defined(__SSE2__)
// Stores that pass the caches by: what is copied is read once more only, by the device, and a cache line that
// is written whole need not be read first.
void copy_streaming(std::byte* target, const std::byte* source, std::size_t bytes) {
  constexpr std::size_t kLine = 64;
  const std::size_t head =
      std::min(bytes, (kLine - reinterpret_cast<std::uintptr_t>(target) % kLine) % kLine);
  std::memcpy(target, source, head);
  std::size_t at = head;
  for (; at + kLine <= bytes; at += kLine) {
    __m128i parts[4];
    for (int i = 0; i < 4; ++i) parts[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + at) + i);
    for (int i = 0; i < 4; ++i) _mm_stream_si128(reinterpret_cast<__m128i*>(target + at) + i, parts[i]);
  }
  std::memcpy(target + at, source + at, bytes - at);
  _mm_sfence();
}
#else
void copy_streaming(std::byte* target, const std::byte* source, std::size_t bytes) {
  std::memcpy(target, source, bytes);
}
#endif

constexpr int kMostThreads = 12;  // more than a device's link takes in

// What one chunk holds: whole rows of a piece, or a part of one that is longer than a chunk.
struct Slice {
  const std::byte* source;
  std::byte* target;
  std::int64_t rows;
  std::size_t row_bytes;
  std::size_t source_stride;

  std::size_t bytes() const { return static_cast<std::size_t>(rows) * row_bytes; }
  void gather(std::byte* chunk) const {
    if (source_stride == row_bytes) {
      copy_streaming(chunk, source, bytes());
      return;
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto r = static_cast<std::size_t>(row);
      copy_streaming(chunk + r * row_bytes, source + r * source_stride, row_bytes);
    }
  }
};

void cut(const UploadPiece& piece, std::size_t chunk_bytes, std::vector<Slice>& slices) {
  TESSERA_CHECK(piece.rows >= 0);
  if (piece.rows == 0 || piece.row_bytes == 0) return;
  const std::size_t stride = piece.source_stride == 0 ? piece.row_bytes : piece.source_stride;
  std::int64_t rows = piece.rows;
  std::size_t row_bytes = piece.row_bytes;
  if (stride == row_bytes) {  // contiguous: one long row
    row_bytes *= static_cast<std::size_t>(rows);
    rows = 1;
  }
  if (row_bytes > chunk_bytes) {
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto r = static_cast<std::size_t>(row);
      for (std::size_t at = 0; at < row_bytes; at += chunk_bytes) {
        const std::size_t bytes = std::min(chunk_bytes, row_bytes - at);
        slices.push_back(
            {piece.source + r * stride + at, piece.target + r * row_bytes + at, 1, bytes, bytes});
      }
    }
    return;
  }
  const auto rows_each = static_cast<std::int64_t>(chunk_bytes / row_bytes);
  for (std::int64_t row = 0; row < rows; row += rows_each) {
    const auto r = static_cast<std::size_t>(row);
    slices.push_back({piece.source + r * stride, piece.target + r * row_bytes,
                      std::min(rows_each, rows - row), row_bytes, stride});
  }
}

}  // namespace

Uploader::Uploader(Device device, UploadConfig config)
    : device_(device), chunk_bytes_(config.chunk_bytes), stream_(device) {
  TESSERA_CHECK(config.chunk_bytes > 0);
  int threads = config.threads;
  if (threads == 0)
    threads = std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMostThreads);
  for (int i = 0; i < threads; ++i) {
    lanes_.push_back(
        {{PinnedBuffer(chunk_bytes_), PinnedBuffer(chunk_bytes_)}, {CudaEvent(device), CudaEvent(device)}});
  }
}

UploadResult Uploader::upload(std::span<const UploadPiece> pieces) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<Slice> slices;
  for (const UploadPiece& piece : pieces) cut(piece, chunk_bytes_, slices);

  std::atomic<std::size_t> next = 0;
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto work = [&](Lane& lane) {
    try {
      const DeviceScope scope(device_);
      for (int turn = 0;; turn ^= 1) {
        const std::size_t index = next.fetch_add(1);
        if (index >= slices.size()) return;
        const Slice& slice = slices[index];
        lane.copied[turn].synchronize();
        slice.gather(lane.chunk[turn].data());
        copy_to_device(slice.target, lane.chunk[turn].data(), slice.bytes(), stream_);
        lane.copied[turn].record(stream_);
      }
    } catch (...) {
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next = slices.size();
    }
  };
  {
    std::vector<std::jthread> threads;
    const std::size_t wanted = std::min(lanes_.size(), slices.size());
    for (std::size_t i = 1; i < wanted; ++i) threads.emplace_back(work, std::ref(lanes_[i]));
    if (wanted > 0) work(lanes_[0]);
  }
  if (failure) std::rethrow_exception(failure);
  stream_.synchronize();

  UploadResult result;
  for (const Slice& slice : slices) result.bytes += slice.bytes();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace tessera::cuda
