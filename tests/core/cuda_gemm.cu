#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <algorithm>

#include "runtime/core/cuda_check.hpp"
#include "runtime/core/device_gemm.hpp"
#include "runtime/core/device_ops.hpp"
#include "tests/cuda_support.hpp"
#include "tests/reference/naive_ops.hpp"

using namespace tessera;
using namespace tessera::cuda;
using namespace cuda_test;

namespace {

struct Shape {
  std::size_t rows, columns, inner;
};

// A layer whose x, W and y lie padded by `padding` elements a row.
class Layer {
 public:
  Layer(Gpu& gpu, const Shape& shape, DType dtype, DType y_dtype, bool bias, bool accumulate,
        std::size_t padding, std::mt19937_64& rng)
      : gpu_(gpu), s_(shape), y_dtype_(y_dtype), y_stride_(s_.columns + padding) {
    const auto draw = [&](std::size_t count) {
      return widened(rounded(random_floats(count, rng), dtype), dtype);
    };
    const std::vector<float> x = draw(s_.rows * s_.inner), weight = draw(s_.columns * s_.inner);
    const std::vector<float> b = draw(bias ? s_.columns : 0), before = draw(s_.rows * s_.columns);
    want_ = reference::linear(x, weight, b, s_.rows, s_.columns, s_.inner);
    // One rounding, and fp32 sums of `inner` products of values up to 1. A product may be rounded before a
    // bias or what is accumulated (both up to 1) is added: the library's kernels that split the inner
    // dimension do.
    allowed_ = allowed_error(want_, y_dtype, 1, static_cast<double>(s_.inner) / 8 + 1);
    for (std::size_t i = 0; i < want_.size(); ++i) {
      if (accumulate) want_[i] += before[i];
      if (accumulate || bias) allowed_[i] += 1.01 * unit_of(y_dtype) * (std::fabs(want_[i]) + 1);
    }
    const auto place = [&](const std::vector<float>& values, std::size_t rows, std::size_t columns) {
      std::vector<float> spread(rows * (columns + padding), NAN);
      for (std::size_t r = 0; r < rows; ++r) {
        std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(r * columns), columns,
                    spread.begin() + static_cast<std::ptrdiff_t>(r * (columns + padding)));
      }
      return spread;
    };
    x_ = gpu.upload(rounded(place(x, s_.rows, s_.inner), dtype));
    weight_ = gpu.upload(rounded(place(weight, s_.columns, s_.inner), dtype));
    bias_ = gpu.upload(rounded(b, dtype));
    if (accumulate) {
      const std::vector<float> spread = place(before, s_.rows, s_.columns);
      y_ = y_dtype == DType::kF32 ? gpu.upload(spread) : gpu.upload(rounded(spread, y_dtype));
    } else {
      y_ = gpu.poisoned(s_.rows * y_stride_ * (y_dtype == DType::kF32 ? 4 : 2));
    }
    p.rows = static_cast<std::int64_t>(s_.rows), p.columns = static_cast<std::int64_t>(s_.columns);
    p.inner = static_cast<std::int64_t>(s_.inner), p.dtype = dtype, p.y_dtype = y_dtype;
    p.x = x_.data(), p.weight = weight_.data(), p.bias = bias ? bias_.data() : nullptr, p.y = y_.data();
    if (padding > 0) {
      p.x_stride = p.weight_stride = static_cast<std::int64_t>(s_.inner + padding);
      p.y_stride = static_cast<std::int64_t>(y_stride_);
    }
    p.accumulate = accumulate;
  }

  std::vector<float> values() { return gpu_.download<float>(y_); }

  // At most 1 where all is well.
  double worst() {
    const std::vector<float> wide = y_dtype_ == DType::kF32
                                        ? gpu_.download<float>(y_)
                                        : widened(gpu_.download<std::uint16_t>(y_), y_dtype_);
    std::vector<float> got;
    for (std::size_t r = 0; r < s_.rows; ++r) {
      for (std::size_t c = 0; c < y_stride_; ++c) {
        const float value = wide[r * y_stride_ + c];
        if (c < s_.columns) {
          got.push_back(value);
        } else if (!std::isnan(value)) {
          return INFINITY;
        }
      }
    }
    return worst_ratio(got, want_, allowed_);
  }

  LinearParams p;

 private:
  Gpu& gpu_;
  Shape s_;
  DType y_dtype_;
  std::size_t y_stride_;
  DeviceBuffer x_, weight_, bias_, y_;
  std::vector<double> want_, allowed_;
};

}  // namespace

TEST_CASE("linear layers on the device equal the fp64 oracle") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  StreamPool pool(gpu.stream(), gpu.meter());
  DeviceGemm gemm(pool);
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const Shape& shape :
         {Shape{0, 64, 64}, Shape{5, 0, 64}, Shape{1, 8, 8}, Shape{1, 1160, 3584}, Shape{2, 40, 4096},
          Shape{3, 136, 896}, Shape{4, 1000, 264}, Shape{1, 130, 29568}, Shape{3, 17, 16},
          Shape{2, 2001, 264}, Shape{5, 264, 8200}, Shape{7, 264, 1000}, Shape{8, 648, 2048},
          Shape{16, 640, 512}, Shape{33, 136, 896}, Shape{130, 264, 520}, Shape{257, 136, 504}}) {
      for (const std::size_t padding : {0u, 8u}) {
        CAPTURE(shape.rows);
        CAPTURE(shape.columns);
        CAPTURE(shape.inner);
        CAPTURE(padding);
        Layer plain(gpu, shape, dtype, dtype, false, false, padding, rng);
        gemm.linear(plain.p);
        CHECK(plain.worst() <= 1);
        if (shape.rows > 0 && shape.rows <= static_cast<std::size_t>(kFewRows)) {  // both ways to do it
          Layer library(gpu, shape, dtype, dtype, true, false, padding, rng);
          gemm.linear_by_library(library.p);
          CHECK(library.worst() <= 1);
          Layer library_added(gpu, shape, dtype, dtype, false, true, padding, rng);
          gemm.linear_by_library(library_added.p);
          CHECK(library_added.worst() <= 1);
        }
        Layer biased(gpu, shape, dtype, dtype, true, false, padding, rng);
        biased.p.settled_weight = true;
        gemm.linear(biased.p);
        CHECK(biased.worst() <= 1);
        Layer logits(gpu, shape, dtype, DType::kF32, false, false, padding, rng);
        gemm.linear(logits.p);
        CHECK(logits.worst() <= 1);
        Layer added(gpu, shape, dtype, dtype, false, true, padding, rng);
        gemm.linear(added.p);
        CHECK(added.worst() <= 1);
      }
    }
  }
  const std::int64_t problems = gemm.problems(), allocations = pool.allocations();
  Layer again(gpu, {130, 264, 520}, DType::kBF16, DType::kBF16, true, false, 0, rng);
  gemm.linear(again.p);
  CHECK(again.worst() <= 1);
  CHECK(gemm.problems() == problems);
  CHECK(pool.allocations() == allocations);
}

TEST_CASE("few rows: the bits of a row do not depend on the rows beside it") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  for (const Shape& shape : {Shape{2, 72, 512}, Shape{2, 1000, 3584}, Shape{2, 9001, 1032}}) {
    Layer layer(gpu, shape, DType::kBF16, DType::kF32, false, false, 0, rng);
    linear_few_rows(layer.p, gpu.stream());
    const std::vector<float> together = layer.values();
    for (std::int64_t row = 0; row < 2; ++row) {
      DeviceBuffer y = gpu.poisoned(shape.columns * 4);
      LinearParams p = layer.p;
      p.rows = 1, p.y = y.data();
      p.x = static_cast<const std::uint16_t*>(p.x) + row * p.inner;
      linear_few_rows(p, gpu.stream());
      const auto begin = together.begin() + row * p.columns;
      CHECK(gpu.download<float>(y) == std::vector<float>(begin, begin + p.columns));
    }
  }
}

TEST_CASE("shapes that no vector divides") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  StreamPool pool(gpu.stream(), gpu.meter());
  DeviceGemm gemm(pool);
  for (const Shape& shape :
       {Shape{1, 1, 1}, Shape{1, 33, 50}, Shape{3, 7, 129}, Shape{9, 101, 77}, Shape{65, 34, 63}}) {
    for (const DType y_dtype : {DType::kBF16, DType::kF32}) {
      CAPTURE(shape.rows);
      CAPTURE(shape.columns);
      CAPTURE(shape.inner);
      Layer layer(gpu, shape, DType::kBF16, y_dtype, false, false, 0, rng);
      gemm.linear(layer.p);
      CHECK(layer.worst() <= 1);
    }
  }
}

TEST_CASE("a graph of norm, products and activation replays what was captured, without allocating") {
  Gpu gpu;
  std::mt19937_64 rng(fresh_seed());
  StreamPool pool(gpu.stream(), gpu.meter());
  DeviceGemm gemm(pool);
  for (const std::size_t rows : {1u, 5u, 48u}) {
    CAPTURE(rows);
    constexpr std::int64_t kE = 896, kF = 1216;
    const auto upload = [&](std::int64_t count, float size) {
      return gpu.upload(
          rounded(random_floats(static_cast<std::size_t>(count), rng, -size, size), DType::kBF16));
    };
    const auto T = static_cast<std::int64_t>(rows);
    DeviceBuffer x = upload(T * kE, 1), norm = upload(kE, 1), up = upload(2 * kF * kE, 0.05f);
    DeviceBuffer down = upload(kE * kF, 0.05f);
    DeviceBuffer y = gpu.poisoned(static_cast<std::size_t>(T * kE * 2));
    const auto step = [&] {
      StreamPool::Block normed = pool.take_array<std::uint16_t>(T * kE);
      StreamPool::Block both = pool.take_array<std::uint16_t>(T * 2 * kF);
      cuda::RmsNormParams n;
      n.rows = T, n.columns = kE, n.x = x.data(), n.weight = norm.data(), n.eps = 1e-6f, n.y = normed.data();
      n.stream = gpu.stream();
      cuda::rms_norm(n);
      LinearParams l;
      l.rows = T, l.inner = kE, l.columns = 2 * kF, l.x = normed.data(), l.weight = up.data(),
      l.y = both.data();
      gemm.linear(l);
      cuda::GatedActivationParams a;
      a.rows = T, a.columns = kF, a.gate = both.data(), a.up = both.as<std::uint16_t>() + kF;
      a.in_stride = 2 * kF, a.y = both.data(), a.y_stride = 2 * kF, a.stream = gpu.stream();
      cuda::gated_activation(a);
      l.inner = kF, l.columns = kE, l.x = both.data(), l.x_stride = 2 * kF, l.weight = down.data(),
      l.y = y.data();
      gemm.linear(l);
    };
    step();
    const std::vector<std::uint16_t> want = gpu.download<std::uint16_t>(y);
    const std::int64_t allocations = pool.allocations();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    CUDA_CHECK(cudaStreamBeginCapture(native(gpu.stream()), cudaStreamCaptureModeThreadLocal));
    step();
    CUDA_CHECK(cudaStreamEndCapture(native(gpu.stream()), &graph));
    CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
    for (int replay = 0; replay < 3; ++replay) {
      fill_bytes(y.data(), 0xff, y.bytes(), gpu.stream());
      CUDA_CHECK(cudaGraphLaunch(executable, native(gpu.stream())));
      CHECK(gpu.download<std::uint16_t>(y) == want);
    }
    CHECK(pool.allocations() == allocations);
    CUDA_CHECK(cudaGraphExecDestroy(executable));
    CUDA_CHECK(cudaGraphDestroy(graph));
  }
}
