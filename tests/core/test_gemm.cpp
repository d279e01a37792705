#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "runtime/core/gemm.hpp"
#include "runtime/core/random.hpp"
#include "tests/reference/compare.hpp"
#include "tests/reference/naive_ops.hpp"

using namespace tessera;

namespace {

std::vector<float> random_floats(std::size_t count, std::uint64_t stream) {
  CounterRng rng(5, stream);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(2.0 * rng.uniform() - 1.0);
  return values;
}

struct Layer {
  Layer(std::int64_t rows_, std::int64_t outer_, std::int64_t inner_, DType dtype, bool with_bias)
      : rows(rows_),
        outer(outer_),
        inner(inner_),
        x(random_floats(static_cast<std::size_t>(rows * inner), 1)),
        weight(random_floats(static_cast<std::size_t>(outer * inner), 2)),
        bias(random_floats(with_bias ? static_cast<std::size_t>(outer) : 0, 3)),
        stored(weight.size() * size_of(dtype) + 1) {
    convert_from_float(weight.data(), dtype, stored.data() + 1, weight.size());
    convert_to_float(stored.data() + 1, dtype, weight.data(), weight.size());
    view = {stored.data() + 1, outer, inner, dtype};  // one byte off: any alignment is allowed
  }

  // Rows of x and y lie padded in larger arrays; the padding must be neither read as x nor written.
  std::vector<float> run(std::int64_t x_padding = 0, std::int64_t y_padding = 0) const {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::int64_t x_stride = inner + x_padding, y_stride = outer + y_padding;
    std::vector<float> padded_x(static_cast<std::size_t>(rows * x_stride) + 1, nan);
    for (std::int64_t t = 0; t < rows; ++t)
      std::copy_n(x.data() + t * inner, inner, padded_x.data() + t * x_stride);
    std::vector<float> padded_y(static_cast<std::size_t>(rows * y_stride) + 1, nan);
    LinearParams p;
    p.rows = rows;
    p.x = padded_x.data();
    p.x_stride = x_padding == 0 ? 0 : x_stride;
    p.weight = view;
    p.bias = bias.empty() ? nullptr : bias.data();
    p.y = padded_y.data();
    p.y_stride = y_padding == 0 ? 0 : y_stride;
    linear(p);
    std::vector<float> y;
    for (std::int64_t t = 0; t < rows; ++t) {
      y.insert(y.end(), padded_y.begin() + t * y_stride, padded_y.begin() + t * y_stride + outer);
      for (std::int64_t i = outer; i < y_stride; ++i) CHECK(std::isnan(padded_y[t * y_stride + i]));
    }
    CHECK(std::isnan(padded_y.back()));
    return y;
  }

  std::int64_t rows, outer, inner;
  std::vector<float> x, weight, bias;
  std::vector<std::byte> stored;
  MatrixView view;
};

}  // namespace

TEST_CASE("linear equals the fp64 oracle at irregular shapes") {
  struct Shape {
    std::int64_t rows, outer, inner;
  };
  for (const auto& [rows, outer, inner] :
       {Shape{0, 5, 7},      Shape{1, 1, 1},     Shape{1, 33, 50},   Shape{1, 0, 50},    Shape{1, 129, 64},
        Shape{2, 37, 100},   Shape{3, 8, 16},    Shape{4, 9, 31},    Shape{5, 70, 129},  Shape{7, 64, 65},
        Shape{8, 33, 896},   Shape{15, 31, 63},  Shape{16, 130, 77}, Shape{17, 130, 77}, Shape{33, 1, 5},
        Shape{40, 300, 257}, Shape{17, 3, 2500}, Shape{600, 70, 33}, Shape{4, 6, 0},     Shape{40, 6, 0}}) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (const bool with_bias : {false, true}) {
        CAPTURE(rows);
        CAPTURE(outer);
        CAPTURE(inner);
        CAPTURE(name_of(dtype));
        const Layer layer(rows, outer, inner, dtype, with_bias);
        const auto want = reference::linear(layer.x, layer.weight, layer.bias, static_cast<std::size_t>(rows),
                                            static_cast<std::size_t>(outer), static_cast<std::size_t>(inner));
        CHECK(reference::relative_error(layer.run(), want) <= 1e-5);
        CHECK(reference::relative_error(layer.run(3, 5), want) <= 1e-5);
      }
    }
  }
}

TEST_CASE("linear gives the same bits on any number of threads") {
  const int threads = omp_get_max_threads();
  for (const std::int64_t rows : {1, 6, 16, 700}) {
    const Layer layer(rows, 530, 300, DType::kBF16, true);
    omp_set_num_threads(1);
    const std::vector<float> one = layer.run();
    omp_set_num_threads(3);
    CHECK(layer.run() == one);
  }
  omp_set_num_threads(threads);
}

TEST_CASE("a row of a small batch has the bits it has alone") {
  const Layer batch(13, 75, 210, DType::kBF16, true);
  const std::vector<float> together = batch.run();
  for (std::int64_t t = 0; t < batch.rows; ++t) {
    Layer single(1, 75, 210, DType::kBF16, true);
    std::copy_n(batch.x.data() + t * batch.inner, batch.inner, single.x.data());
    const std::vector<float> alone = single.run();
    CHECK(std::equal(alone.begin(), alone.end(), together.begin() + t * batch.outer));
  }
}

TEST_CASE("NaN in the input reaches only its row of the output") {
  Layer layer(20, 9, 40, DType::kF32, false);
  layer.x[7 * 40 + 39] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> y = layer.run();
  for (std::int64_t i = 0; i < 20 * 9; ++i) CHECK(std::isnan(y[i]) == (i / 9 == 7));
}
