#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <limits>

#include "runtime/core/cuda_check.hpp"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/error.hpp"
#include "tests/cuda_support.hpp"

using namespace tessera;
using namespace tessera::cuda;
using cuda_test::Gpu;

namespace {

__global__ void add_one(int* values, std::int64_t count) {
  const std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x;
  if (i < count) values[i] += 1;
}

__global__ void fill_through_shared(int* out) {
  extern __shared__ int staged[];
  for (int i = threadIdx.x; i < 40'000; i += blockDim.x) staged[i] = i;
  __syncthreads();
  if (threadIdx.x == 0) *out = staged[39'999];
}

}  // namespace

TEST_CASE("device buffers are counted by kind and given back") {
  Gpu gpu;
  {
    DeviceBuffer weights(1000, Gpu::device(), MemoryKind::kWeights, gpu.meter());
    DeviceBuffer kv(24, Gpu::device(), MemoryKind::kKv, gpu.meter());
    CHECK(gpu.meter().current(MemoryKind::kWeights) == 1000);
    CHECK(gpu.meter().current(MemoryKind::kKv) == 24);
    DeviceBuffer moved = std::move(weights);
    CHECK(weights.data() == nullptr);
    CHECK(gpu.meter().current(MemoryKind::kWeights) == 1000);
    moved = DeviceBuffer();
    CHECK(gpu.meter().current(MemoryKind::kWeights) == 0);
    CHECK(DeviceBuffer(0, Gpu::device(), MemoryKind::kKv, gpu.meter()).data() == nullptr);
  }
  CHECK(gpu.meter().current(MemoryKind::kKv) == 0);
  CHECK(gpu.meter().peak_total() == 1024);
  CHECK_THROWS_AS(DeviceBuffer(std::size_t{1} << 50, Gpu::device(), MemoryKind::kKv, gpu.meter()),
                  ResourceError);
  CHECK(gpu.meter().current(MemoryKind::kKv) == 0);
  gpu.synchronize();  // the failed allocation left no error behind
}

TEST_CASE("launches follow their stream, raise shared memory and pass over empty grids") {
  Gpu gpu;
  std::vector<int> values(1000, 41);
  DeviceBuffer buffer = gpu.upload(values);
  launch(add_one, {.grid = dim3(4), .block = dim3(256)}, gpu.stream(), buffer.as<int>(), 1000);
  launch(add_one, {.grid = dim3(0), .block = dim3(256)}, gpu.stream(), buffer.as<int>(), 1000);
  values = gpu.download<int>(buffer);
  CHECK(values == std::vector<int>(1000, 42));
  launch(fill_through_shared, {.grid = dim3(1), .block = dim3(256), .shared_bytes = 160'000}, gpu.stream(),
         buffer.as<int>());
  CHECK(gpu.download<int>(buffer)[0] == 39'999);
  CHECK_THROWS_AS(launch(add_one, {.grid = dim3(1), .block = dim3(2048)}, gpu.stream(), buffer.as<int>(), 1),
                  InternalError);
  gpu.synchronize();  // a launch that failed leaves no error behind
}

TEST_CASE("events order streams and time them") {
  Gpu gpu;
  CudaStream other(Gpu::device());
  DeviceBuffer buffer = gpu.upload(std::vector<int>(1 << 20, 0));
  CudaEvent first(Gpu::device(), EventUse::kTiming), last(Gpu::device(), EventUse::kTiming);
  CudaEvent ready(Gpu::device());
  CHECK(ready.done());
  first.record(gpu.stream());
  for (int i = 0; i < 50; ++i) {
    launch(add_one, {.grid = dim3(4096), .block = dim3(256)}, gpu.stream(), buffer.as<int>(), 1 << 20);
  }
  ready.record(gpu.stream());
  ready.hold(other);
  launch(add_one, {.grid = dim3(4096), .block = dim3(256)}, other, buffer.as<int>(), 1 << 20);
  last.record(other);
  CHECK(milliseconds_between(first, last) > 0);
  CHECK(gpu.download<int>(buffer) == std::vector<int>(1 << 20, 51));
}

TEST_CASE("a stream pool allocates nothing once it has seen the sizes") {
  Gpu gpu;
  StreamPool pool(gpu.stream(), gpu.meter());
  CHECK(pool.take(0).data() == nullptr);
  for (int round = 0; round < 3; ++round) {
    StreamPool::Block a = pool.take(1000), b = pool.take(1'000'000), c = pool.take_array<float>(77'777);
    CHECK(a.data() != b.data());
    CHECK(b.data() != c.data());
    CHECK(reinterpret_cast<std::uintptr_t>(a.data()) % 256 == 0);
    CHECK(b.bytes() == 1'000'000);
    CHECK(pool.allocations() == 3);
  }
  CHECK(pool.held_bytes() < 1'400'000 * 5 / 4);
  CHECK(gpu.meter().current(MemoryKind::kWorkspace) == static_cast<std::int64_t>(pool.held_bytes()));
  StreamPool::Block kept = pool.take(1000);
  StreamPool::Block moved = std::move(kept);
  pool.trim();
  CHECK(pool.held_bytes() == 1024);
  moved = pool.take(10);
  CHECK(pool.allocations() == 4);
}

TEST_CASE("pinned buffers are seen by asynchronous copies") {
  Gpu gpu;
  PinnedBuffer pinned(4096);
  for (int i = 0; i < 1024; ++i) pinned.as<int>()[i] = i * i;
  DeviceBuffer buffer = gpu.poisoned(4096);
  copy_to_device(buffer.data(), pinned.data(), 4096, gpu.stream());
  const std::vector<int> back = gpu.download<int>(buffer);
  for (int i = 0; i < 1024; ++i) CHECK(back[i] == i * i);
}
