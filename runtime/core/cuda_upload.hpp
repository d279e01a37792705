// Weights from mapped files to the device, through pinned chunks that several threads fill while others are
// copied. Needs no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/core/cuda_memory.hpp"
#include "runtime/core/cuda_stream.hpp"
#include "runtime/core/device.hpp"

namespace tessera::cuda {

// Rows of row_bytes that lie source_stride bytes apart on the host (a slice of columns of a tensor), packed
// on the device. A contiguous tensor is one row.
struct UploadPiece {
  const std::byte* source = nullptr;
  std::byte* target = nullptr;  // on the device
  std::int64_t rows = 1;
  std::size_t row_bytes = 0;
  std::size_t source_stride = 0;  // 0: row_bytes
};

struct UploadResult {
  std::size_t bytes = 0;
  double seconds = 0;
};

struct UploadConfig {
  int threads = 0;                                 // 0: as many cores as there are, at most 12
  std::size_t chunk_bytes = std::size_t{4} << 20;  // two of them a thread
};

class Uploader {
 public:
  explicit Uploader(Device device, UploadConfig config = {});
  // Returns when all of it is on the device.
  UploadResult upload(std::span<const UploadPiece> pieces);
  int threads() const { return static_cast<int>(lanes_.size()); }

 private:
  // A thread's two chunks: one is filled while the other is copied.
  struct Lane {
    PinnedBuffer chunk[2];
    CudaEvent copied[2];
  };

  Device device_;
  std::size_t chunk_bytes_;
  CudaStream stream_;
  std::vector<Lane> lanes_;
};

}  // namespace tessera::cuda
