#include <doctest/doctest.h>

#include <algorithm>

#include "runtime/core/cuda_upload.hpp"
#include "runtime/core/error.hpp"
#include "tests/cuda_support.hpp"

using namespace tessera;
using namespace tessera::cuda;
using namespace cuda_test;

TEST_CASE("pieces of any size, contiguous or strided, arrive whole and touch nothing else") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  std::vector<std::uint64_t> host(1 << 20);
  for (std::uint64_t& word : host) word = rng() & 0x7f7f7f7f7f7f7f7f;  // never poison
  const auto* source = reinterpret_cast<const std::byte*>(host.data());
  struct Shape {
    std::int64_t rows;
    std::size_t row_bytes, stride;
  };
  const std::vector<Shape> shapes = {
      {1, 1, 0}, {1, 5'000'001, 0},     {300, 1000, 1000}, {77, 1003, 4001}, {0, 16, 16},
      {3, 0, 8}, {5, 300'000, 300'001}, {1, 65'536, 0},    {2000, 2, 1111},  {9, 65'536, 65'537}};
  for (const int threads : {1, 3, 8}) {
    Uploader uploader(Gpu::device(), {.threads = threads, .chunk_bytes = 65'536});
    for (int round = 0; round < 2; ++round) {
      DeviceBuffer target = gpu.poisoned(std::size_t{16} << 20);
      std::vector<std::byte> want(target.bytes(), std::byte{0xff});
      std::vector<UploadPiece> pieces;
      std::size_t at = 3, bytes = 0;
      for (const Shape& shape : shapes) {
        const std::size_t offset = rng() % 1000;
        pieces.push_back({source + offset, target.data() + at, shape.rows, shape.row_bytes, shape.stride});
        const std::size_t stride = shape.stride == 0 ? shape.row_bytes : shape.stride;
        for (std::size_t r = 0; r < static_cast<std::size_t>(shape.rows); ++r) {
          std::copy_n(source + offset + r * stride, shape.row_bytes,
                      want.begin() + static_cast<std::ptrdiff_t>(at));
          at += shape.row_bytes;
          bytes += shape.row_bytes;
        }
        at += 5;
      }
      const UploadResult result = uploader.upload(pieces);
      CHECK(result.bytes == bytes);
      CHECK(gpu.download<std::byte>(target) == want);
    }
    CHECK(uploader.upload({}).bytes == 0);
    const UploadPiece bad = {source, nullptr, 1, 1000, 0};
    CHECK_THROWS_AS(uploader.upload({&bad, 1}), InternalError);
    gpu.synchronize();
  }
}
