// The PTX wrappers, each alone against what it is said to do.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "attention/prefill_softmax.cuh"
#include "attention/ptx/mbarrier.cuh"
#include "attention/ptx/tma.cuh"
#include "attention/ptx/warpgroup.cuh"
#include "attention/ptx/wgmma.cuh"
#include "attention/tensor_map.hpp"
#include "runtime/core/cuda_launch.hpp"
#include "tests/cuda_support.hpp"

using namespace tessera;
using namespace tessera::cuda;
using cuda_test::Gpu;

namespace {

template <typename T>
constexpr DType kTypeOf = std::is_same_v<T, __nv_bfloat16> ? DType::kBF16 : DType::kF16;

// A box of 64 columns × 64 rows from (x, y, z), as it lies in shared memory.
__global__ void copy_box(const __grid_constant__ CUtensorMap map, int x, int y, int z, std::uint16_t* out) {
  __shared__ alignas(1024) std::uint16_t box[64 * 64];
  __shared__ std::uint64_t barrier;
  if (threadIdx.x == 0) {
    ptx::barrier_init(&barrier, 1);
    ptx::fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::barrier_arrive_expect(&barrier, sizeof(box));
    ptx::load_box_3d(box, &map, &barrier, x, y, z, ptx::kEvictFirst);
  }
  ptx::barrier_wait(&barrier, 0);
  for (int i = threadIdx.x; i < 64 * 64; i += blockDim.x) out[i] = box[i];
}

// D (64, N) = A · Bᵀ over 128 channels: a (64, 128), b (N, 128), both as TMA writes them.
template <typename T, int kN>
__global__ void multiply_shared(const __grid_constant__ CUtensorMap a_map,
                                const __grid_constant__ CUtensorMap b_map, float* out) {
  extern __shared__ __align__(1024) unsigned char memory[];
  T* a = reinterpret_cast<T*>(memory);
  T* b = a + 64 * 128;
  __shared__ std::uint64_t barrier;
  if (threadIdx.x == 0) {
    ptx::barrier_init(&barrier, 1);
    ptx::fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::barrier_arrive_expect(&barrier, (64 + kN) * 128 * 2);
    for (int g = 0; g < 2; ++g) {
      ptx::load_box_3d(a + g * 64 * 64, &a_map, &barrier, 64 * g, 0, 0, ptx::kEvictFirst);
      for (int r = 0; r < kN / 64; ++r) {
        ptx::load_box_3d(b + (g * kN + r * 64) * 64, &b_map, &barrier, 64 * g, 64 * r, 0, ptx::kEvictLast);
      }
    }
  }
  ptx::barrier_wait(&barrier, 0);
  const std::uint64_t a_operand = ptx::swizzled_descriptor(ptx::shared_address(a), 0);
  const std::uint64_t b_operand = ptx::swizzled_descriptor(ptx::shared_address(b), 0);
  float d[kN / 2];
  for (float& value : d) value = NAN;  // the first product overwrites
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < 8; ++step) {
    ptx::wgmma_ss<T, kN>(d, a_operand + (step / 4 * 64 * 128 + step % 4 * 32) / 16,
                         b_operand + (step / 4 * kN * 128 + step % 4 * 32) / 16, step != 0);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::fence_registers(d);
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    out[(row + i % 4 / 2 * 8) * kN + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2] = d[i];
  }
}

// D (64, N) += A · B over 64 keys: a (64, 64) packed from fp32 in fragment order, b (64, N) as TMA writes it.
template <typename T, int kN>
__global__ void multiply_registers(const float* a, const __grid_constant__ CUtensorMap b_map, float* out) {
  extern __shared__ __align__(1024) unsigned char memory[];
  T* b = reinterpret_cast<T*>(memory);
  __shared__ std::uint64_t barrier;
  if (threadIdx.x == 0) {
    ptx::barrier_init(&barrier, 1);
    ptx::fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::barrier_arrive_expect(&barrier, 64 * kN * 2);
    for (int g = 0; g < kN / 64; ++g) {
      ptx::load_box_3d(b + g * 64 * 64, &b_map, &barrier, 64 * g, 0, 0, ptx::kEvictLast);
    }
  }
  ptx::barrier_wait(&barrier, 0);
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
  float fragment[32];
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    fragment[i] = a[(row + i % 4 / 2 * 8) * 64 + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2];
  }
  std::uint32_t packed[16];
  pack_fragment<T>(fragment, packed);
  float d[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) d[i] = 1;
  const std::uint64_t b_operand = ptx::swizzled_descriptor(ptx::shared_address(b), 64 * 128);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    ptx::wgmma_rs<T, kN, true>(d, packed + 4 * step, b_operand + step * 16 * 128 / 16, 1);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::fence_registers(d);
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    out[(row + i % 4 / 2 * 8) * kN + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2] = d[i];
  }
}

// Two warpgroups hand a counter to and fro by named barriers, with registers moved between them first.
__global__ void __launch_bounds__(256, 1) take_turns(int* counter, int rounds) {
  const int group = static_cast<int>(threadIdx.x) / 128;
  if (group == 0) {
    ptx::give_registers<24>();
    ptx::named_barrier_arrive(1, 256);
    for (int i = 0; i < rounds; ++i) {
      ptx::named_barrier_wait(2, 256);
      if (threadIdx.x == 0) *counter = *counter * 2 + 1;
      ptx::named_barrier_arrive(1, 256);
    }
  } else {
    ptx::take_registers<240>();
    for (int i = 0; i < rounds; ++i) {
      ptx::named_barrier_wait(1, 256);
      if (threadIdx.x == 128) *counter = *counter * 3 + 5;
      ptx::named_barrier_arrive(2, 256);
    }
  }
}

__global__ void powers(const float* x, int count, float* out) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) out[i] = ptx::exp2_approx(x[i]);
}

__global__ void exchange(uint4* out) {
  std::uint32_t words[4];
  for (int i = 0; i < 4; ++i) words[i] = 100 * threadIdx.x + i;
  out[threadIdx.x] = exchange_in_quad(words);
}

template <typename T>
struct Operand {
  Operand(Gpu& gpu, std::mt19937_64& rng, int rows, int columns)
      : values(cuda_test::widened(
            cuda_test::rounded(cuda_test::random_floats(static_cast<std::size_t>(rows) * columns, rng),
                               kTypeOf<T>),
            kTypeOf<T>)),
        device(gpu.upload(cuda_test::rounded(values, kTypeOf<T>))) {
    map = make_tensor_map(
        {device.data(),
         kTypeOf<T>,
         {static_cast<std::uint64_t>(columns), static_cast<std::uint64_t>(rows), 1},
         {static_cast<std::uint64_t>(columns) * 2, static_cast<std::uint64_t>(columns) * rows * 2},
         {64, 64, 1}});
  }
  std::vector<float> values;
  DeviceBuffer device;
  CUtensorMap map;
};

template <typename T, int kN>
void check_multiply_shared() {
  CAPTURE(kN);
  Gpu gpu;
  std::mt19937_64 rng(cuda_test::fresh_seed());
  Operand<T> a(gpu, rng, 64, 128);
  Operand<T> b(gpu, rng, kN, 128);
  DeviceBuffer out = gpu.poisoned(64 * kN * 4);
  launch(multiply_shared<T, kN>,
         {.grid = dim3(1), .block = dim3(128), .shared_bytes = (64 + kN) * 128 * 2 + 1024}, gpu.stream(),
         a.map, b.map, out.as<float>());
  const std::vector<float> got = gpu.download<float>(out);
  double worst = 0;
  for (int i = 0; i < 64; ++i) {
    for (int j = 0; j < kN; ++j) {
      double expected = 0;
      for (int c = 0; c < 128; ++c)
        expected += static_cast<double>(a.values[i * 128 + c]) * b.values[j * 128 + c];
      worst = std::fmax(worst, std::fabs(got[i * kN + j] - expected));
      if (std::isnan(got[i * kN + j])) worst = INFINITY;
    }
  }
  CHECK(worst < 1e-4);
}

template <typename T, int kN>
void check_multiply_registers() {
  CAPTURE(kN);
  Gpu gpu;
  std::mt19937_64 rng(cuda_test::fresh_seed());
  Operand<T> a(gpu, rng, 64, 64);
  Operand<T> b(gpu, rng, 64, kN);
  DeviceBuffer a_wide = gpu.upload(a.values);
  DeviceBuffer out = gpu.poisoned(64 * kN * 4);
  launch(multiply_registers<T, kN>, {.grid = dim3(1), .block = dim3(128), .shared_bytes = 64 * kN * 2},
         gpu.stream(), a_wide.as<float>(), b.map, out.as<float>());
  const std::vector<float> got = gpu.download<float>(out);
  double worst = 0;
  for (int i = 0; i < 64; ++i) {
    for (int j = 0; j < kN; ++j) {
      double expected = 1;
      for (int c = 0; c < 64; ++c)
        expected += static_cast<double>(a.values[i * 64 + c]) * b.values[c * kN + j];
      worst = std::fmax(worst, std::fabs(got[i * kN + j] - expected));
      if (std::isnan(got[i * kN + j])) worst = INFINITY;
    }
  }
  CHECK(worst < 1e-4);
}

}  // namespace

TEST_CASE("TMA boxes: swizzled rows, zeros outside of the tensor on either side") {
  Gpu gpu;
  constexpr int kColumns = 128;
  constexpr int kRows = 64;
  constexpr int kPlanes = 3;
  std::vector<std::uint16_t> values(kColumns * kRows * kPlanes);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint16_t>(i + 1);
  DeviceBuffer device = gpu.upload(values);
  const CUtensorMap map = make_tensor_map({device.data(),
                                           DType::kBF16,
                                           {kColumns, kRows, kPlanes},
                                           {kColumns * 2, kColumns * kRows * 2},
                                           {64, 64, 1}});
  struct Place {
    int x, y, z;
  };
  for (const Place place : {Place{0, 0, 0}, Place{64, 0, 2}, Place{0, -40, 1}, Place{64, 1, 1},
                            Place{0, 64, 0}, Place{0, 0, 3}}) {
    CAPTURE(place.y);
    DeviceBuffer out = gpu.poisoned(64 * 64 * 2);
    launch(copy_box, {.grid = dim3(1), .block = dim3(128)}, gpu.stream(), map, place.x, place.y, place.z,
           out.as<std::uint16_t>());
    const std::vector<std::uint16_t> got = gpu.download<std::uint16_t>(out);
    int wrong = 0;
    for (int r = 0; r < 64; ++r) {
      for (int c = 0; c < 64; ++c) {
        const int row = place.y + r;
        const bool inside = row >= 0 && row < kRows && place.z < kPlanes;
        const std::uint16_t expected = inside ? values[(place.z * kRows + row) * kColumns + place.x + c] : 0;
        // 16-byte pieces of a 128-byte row stand at their index xor the row's index in its group of 8.
        const int piece = c / 8 ^ r % 8;
        wrong += got[r * 64 + piece * 8 + c % 8] != expected;
      }
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE_TEMPLATE("wgmma: both operands in shared memory", T, __nv_bfloat16, __half) {
  check_multiply_shared<T, 64>();
  check_multiply_shared<T, 128>();
  check_multiply_shared<T, 192>();
}

TEST_CASE_TEMPLATE("wgmma: A in registers, B transposed in shared memory", T, __nv_bfloat16, __half) {
  check_multiply_registers<T, 64>();
  check_multiply_registers<T, 128>();
  check_multiply_registers<T, 256>();
}

TEST_CASE("named barriers order two warpgroups, registers moved") {
  Gpu gpu;
  DeviceBuffer counter = gpu.upload(std::vector<int>{1});
  launch(take_turns, {.grid = dim3(1), .block = dim3(256)}, gpu.stream(), counter.as<int>(), 8);
  int expected = 1;
  for (int i = 0; i < 8; ++i) expected = (expected * 3 + 5) * 2 + 1;
  CHECK(gpu.download<int>(counter)[0] == expected);
}

TEST_CASE("powers of two") {
  Gpu gpu;
  std::vector<float> x;
  for (int i = 0; i <= 20'000; ++i) x.push_back(-120.0F + 0.0065F * static_cast<float>(i));
  x.push_back(-INFINITY);
  DeviceBuffer in = gpu.upload(x);
  DeviceBuffer out = gpu.poisoned(x.size() * 4);
  launch(powers, {.grid = dim3(1), .block = dim3(256)}, gpu.stream(), in.as<float>(),
         static_cast<int>(x.size()), out.as<float>());
  const std::vector<float> got = gpu.download<float>(out);
  double worst = 0;
  for (std::size_t i = 0; i + 1 < x.size(); ++i) {
    worst = std::fmax(worst, std::fabs(got[i] / std::exp2(static_cast<double>(x[i])) - 1));
  }
  CHECK(worst < 1e-6);
  CHECK(got.back() == 0);
}

TEST_CASE("quads exchange words for groups of 16 bytes") {
  Gpu gpu;
  DeviceBuffer out = gpu.poisoned(32 * 16);
  launch(exchange, {.grid = dim3(1), .block = dim3(32)}, gpu.stream(), out.as<uint4>());
  const std::vector<std::uint32_t> got = gpu.download<std::uint32_t>(out);
  int wrong = 0;
  for (std::uint32_t lane = 0; lane < 32; ++lane) {
    for (std::uint32_t i = 0; i < 4; ++i) wrong += got[4 * lane + i] != 100 * (lane / 4 * 4 + i) + lane % 4;
  }
  CHECK(wrong == 0);
}
