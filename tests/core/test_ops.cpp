#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "runtime/core/ops.hpp"
#include "runtime/core/random.hpp"
#include "tests/reference/compare.hpp"
#include "tests/reference/naive_ops.hpp"

using namespace tessera;

namespace {

const float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> random_floats(std::size_t count, std::uint64_t stream, double scale = 1.0) {
  CounterRng rng(6, stream);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(scale * (2.0 * rng.uniform() - 1.0));
  return values;
}

}  // namespace

TEST_CASE("rms_norm equals the fp64 oracle, in and out of place") {
  for (const std::size_t rows : {0, 1, 5, 64}) {
    for (const std::size_t columns : {1, 7, 16, 64, 131, 896}) {
      const std::vector<float> x = random_floats(rows * columns, 1, 3.0);
      const std::vector<float> weight = random_floats(columns, 2);
      for (const float offset : {0.0f, 1.0f}) {
        const auto want = reference::rms_norm(x, weight, offset, 1e-6f, rows, columns);
        std::vector<float> y(rows * columns, kNan);
        RmsNormParams p;
        p.rows = static_cast<std::int64_t>(rows);
        p.columns = static_cast<std::int64_t>(columns);
        p.x = x.data();
        p.weight = weight.data();
        p.weight_offset = offset;
        p.eps = 1e-6f;
        p.y = y.data();
        rms_norm(p);
        CHECK(reference::relative_error(y, want) <= 2e-6);
        std::vector<float> in_place = x;
        p.x = in_place.data();
        p.y = in_place.data();
        rms_norm(p);
        CHECK(in_place == y);
      }
    }
  }
}

TEST_CASE("rms_norm honours strides") {
  std::vector<float> x(3 * 50, kNan);  // 3 rows of 20 in rows of 50
  const std::vector<float> values = random_floats(60, 1);
  const std::vector<float> weight = random_floats(20, 2);
  for (std::size_t r = 0; r < 3; ++r) std::copy_n(values.data() + r * 20, 20, x.data() + r * 50);
  std::vector<float> y(3 * 30, kNan);
  RmsNormParams p;
  p.rows = 3;
  p.columns = 20;
  p.x = x.data();
  p.x_stride = 50;
  p.weight = weight.data();
  p.eps = 1e-5f;
  p.y = y.data();
  p.y_stride = 30;
  rms_norm(p);
  const auto want = reference::rms_norm(values, weight, 0, 1e-5f, 3, 20);
  for (std::size_t r = 0; r < 3; ++r) {
    for (std::size_t c = 0; c < 20; ++c)
      CHECK(y[r * 30 + c] == doctest::Approx(want[r * 20 + c]).epsilon(1e-5));
    for (std::size_t c = 20; c < 30; ++c) CHECK(std::isnan(y[r * 30 + c]));
  }
}

TEST_CASE("apply_rope equals the fp64 oracle and touches only its heads") {
  for (const int head_dim : {2, 10, 34, 64, 128}) {
    const int heads = 3;
    const std::size_t half = static_cast<std::size_t>(head_dim / 2);
    const std::vector<std::int32_t> positions{0, 5, 99, 7};
    std::vector<float> cosines(100 * half), sines(100 * half);
    const auto angle = [&](std::size_t position, std::size_t i) {
      return static_cast<double>(position) * std::pow(10000.0, -2.0 * static_cast<double>(i) / head_dim);
    };
    for (std::size_t position = 0; position < 100; ++position) {
      for (std::size_t i = 0; i < half; ++i) {
        cosines[position * half + i] = static_cast<float>(std::cos(angle(position, i)));
        sines[position * half + i] = static_cast<float>(std::sin(angle(position, i)));
      }
    }
    const std::size_t stride = static_cast<std::size_t>(heads * head_dim) + 9;
    const std::vector<float> before = random_floats(positions.size() * stride, 4);
    std::vector<float> x = before;
    RopeParams p;
    p.tokens = static_cast<std::int64_t>(positions.size());
    p.heads = heads;
    p.head_dim = head_dim;
    p.x = x.data();
    p.row_stride = static_cast<std::int64_t>(stride);
    p.positions = positions.data();
    p.cosines = cosines.data();
    p.sines = sines.data();
    apply_rope(p);
    for (std::size_t t = 0; t < positions.size(); ++t) {
      std::vector<double> angles(half);
      for (std::size_t i = 0; i < half; ++i) angles[i] = angle(static_cast<std::size_t>(positions[t]), i);
      for (int head = 0; head < heads; ++head) {
        const auto at = static_cast<std::ptrdiff_t>(t * stride) + head * head_dim;
        const std::vector<float> row(before.begin() + at, before.begin() + at + head_dim);
        const std::vector<float> got(x.begin() + at, x.begin() + at + head_dim);
        CHECK(reference::relative_error(got, reference::rope(row, angles)) <= 1e-6);
      }
      for (std::size_t i = stride - 9; i < stride; ++i) CHECK(x[t * stride + i] == before[t * stride + i]);
    }
  }
}

TEST_CASE("gated activations equal the fp64 oracle, also far out and in place") {
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
    for (const std::size_t count :
         {std::size_t{0}, std::size_t{1}, std::size_t{15}, std::size_t{33}, std::size_t{40001}}) {
      std::vector<float> gate = random_floats(count, 1, 12.0);
      const std::vector<float> up = random_floats(count, 2);
      if (count > 20) {
        gate[0] = 1000.0f;
        gate[1] = -1000.0f;
        gate[2] = 0.0f;
        gate[count - 1] = -90.0f;
      }
      std::vector<double> want(count);
      for (std::size_t i = 0; i < count; ++i) {
        const double x = gate[i];
        want[i] = (activation == Activation::kSilu ? reference::silu(x) : reference::gelu_tanh(x)) * up[i];
      }
      std::vector<float> y(count, kNan);
      GatedActivationParams p;
      p.count = static_cast<std::int64_t>(count);
      p.gate = gate.data();
      p.up = up.data();
      p.y = y.data();
      p.activation = activation;
      gated_activation(p);
      int wrong = 0;
      for (std::size_t i = 0; i < count; ++i) {
        if (!(std::fabs(y[i] - want[i]) <= 1e-6 * std::fabs(want[i]) + 1e-6)) ++wrong;
      }
      CHECK(wrong == 0);
      std::vector<float> in_place = gate;
      p.gate = in_place.data();
      p.y = in_place.data();
      gated_activation(p);
      CHECK(in_place == y);
    }
    const float gate[3] = {kNan, 1.0f, kNan};
    const float up[3] = {1.0f, kNan, 1.0f};
    float y[3] = {0, 0, 0};
    gated_activation({3, gate, up, y, activation, {}});
    for (float value : y) CHECK(std::isnan(value));
  }
}

TEST_CASE("add_in_place adds") {
  for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{19}, std::size_t{50001}}) {
    const std::vector<float> x = random_floats(count, 1);
    const std::vector<float> before = random_floats(count, 2);
    std::vector<float> y = before;
    y.push_back(42.0f);
    add_in_place(y.data(), x.data(), static_cast<std::int64_t>(count), {});
    for (std::size_t i = 0; i < count; ++i) REQUIRE(y[i] == before[i] + x[i]);
    CHECK(y[count] == 42.0f);
  }
}

TEST_CASE("embed_rows takes rows of this slice and zeros for others") {
  const std::size_t columns = 21;
  const std::vector<float> values = random_floats(10 * columns, 1);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    std::vector<std::byte> stored(values.size() * size_of(dtype));
    convert_from_float(values.data(), dtype, stored.data(), values.size());
    std::vector<float> rounded(values.size());
    convert_to_float(stored.data(), dtype, rounded.data(), values.size());
    const std::vector<std::int32_t> tokens{100, 109, 99, 110, 0, 104};
    std::vector<float> out(tokens.size() * columns, kNan);
    EmbedParams p;
    p.tokens_count = static_cast<std::int64_t>(tokens.size());
    p.tokens = tokens.data();
    p.table = {stored.data(), 10, static_cast<std::int64_t>(columns), dtype};
    p.first_row = 100;
    p.scale = 1.5f;
    p.out = out.data();
    embed_rows(p);
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      const bool here = tokens[t] >= 100 && tokens[t] < 110;
      for (std::size_t i = 0; i < columns; ++i) {
        const float want =
            here ? rounded[static_cast<std::size_t>(tokens[t] - 100) * columns + i] * 1.5f : 0.0f;
        REQUIRE(out[t * columns + i] == want);
      }
    }
  }
}

TEST_CASE("argmax breaks ties to the lower index and shows NaN") {
  const float infinity = std::numeric_limits<float>::infinity();
  const auto at = [](std::vector<float> values) {
    return argmax(values.data(), static_cast<std::int64_t>(values.size())).index;
  };
  CHECK(at({3.0f}) == 0);
  CHECK(at({1.0f, 5.0f, 5.0f}) == 1);
  CHECK(at({-infinity, -infinity}) == 0);
  CHECK(at({0.0f, infinity, infinity}) == 1);
  CHECK(at({-0.0f, 0.0f}) == 0);
  CHECK(at({kNan}) == -1);
  CHECK(at({kNan, 1.0f}) == -1);
  CHECK(at({1.0f, kNan}) == -1);
  std::vector<float> many(100003, 1.0f);
  many[70001] = 2.0f;
  many[90001] = 2.0f;
  CHECK(at(many) == 70001);
  CHECK(argmax(many.data(), 100003).value == 2.0f);
  many[100002] = kNan;
  CHECK(at(many) == -1);
}
