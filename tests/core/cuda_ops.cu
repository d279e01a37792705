#include <doctest/doctest.h>

#include <algorithm>

#include "runtime/core/device_ops.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/random.hpp"
#include "tests/cuda_support.hpp"
#include "tests/reference/naive_ops.hpp"

using namespace tessera;
using namespace tessera::cuda;
using namespace cuda_test;

namespace {

constexpr DType kTypes[] = {DType::kBF16, DType::kF16};

std::vector<float> random_values(std::size_t count, DType dtype, std::mt19937_64& rng, float low = -1,
                                 float high = 1) {
  return widened(rounded(random_floats(count, rng, low, high), dtype), dtype);
}

// Rows of `columns` values, rows `stride` apart, poison between.
std::vector<std::uint16_t> padded(const std::vector<float>& values, std::size_t rows, std::size_t columns,
                                  std::size_t stride, DType dtype) {
  std::vector<std::uint16_t> bits(rows * stride, kPoison16);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < columns; ++c) bits[r * stride + c] = bits_of(values[r * columns + c], dtype);
  }
  return bits;
}

// The rows out of such an array; NaN everywhere where something between them was written.
std::vector<float> unpadded(const std::vector<std::uint16_t>& bits, std::size_t rows, std::size_t columns,
                            std::size_t stride, DType dtype) {
  std::vector<float> values;
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < columns; ++c) values.push_back(value_of(bits[r * stride + c], dtype));
    for (std::size_t c = columns; c < stride; ++c) {
      if (bits[r * stride + c] != kPoison16) return std::vector<float>(rows * columns, NAN);
    }
  }
  return values;
}

struct RowShape {
  std::size_t rows, columns, padding;
};
constexpr RowShape kRowShapes[] = {{0, 64, 0},     {1, 8, 0},       {1, 1, 0},     {3, 7, 2},
                                   {5, 896, 8},    {2, 3584, 0},    {1, 8192, 16}, {4, 2560, 3},
                                   {266, 2560, 0}, {265, 16384, 8}, {263, 264, 8}, {2, 33000, 0},
                                   {1, 16384, 0},  {265, 1000, 0},  {17, 2049, 1}};

}  // namespace

TEST_CASE("rms_norm on the device equals the fp64 oracle") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  for (const DType dtype : kTypes) {
    for (const auto& [rows, columns, padding] : kRowShapes) {
      for (const float offset : {0.0f, 1.0f}) {
        CAPTURE(rows);
        CAPTURE(columns);
        CAPTURE(offset);
        const std::size_t stride = columns + padding;
        const std::vector<float> x = random_values(rows * columns, dtype, rng, -3, 3);
        const std::vector<float> weight = random_values(columns, dtype, rng);
        DeviceBuffer x_there = gpu.upload(padded(x, rows, columns, stride, dtype));
        DeviceBuffer weight_there = gpu.upload(rounded(weight, dtype));
        DeviceBuffer y = gpu.poisoned(rows * stride * 2);
        cuda::RmsNormParams p;
        p.rows = static_cast<std::int64_t>(rows), p.columns = static_cast<std::int64_t>(columns);
        p.dtype = dtype;
        p.x = x_there.data(), p.x_stride = static_cast<std::int64_t>(stride);
        p.weight = weight_there.data(), p.weight_offset = offset, p.eps = 1e-5f;
        p.y = y.data(), p.y_stride = static_cast<std::int64_t>(stride);
        p.stream = gpu.stream();
        cuda::rms_norm(p);
        const std::vector<double> want = reference::rms_norm(x, weight, offset, 1e-5, rows, columns);
        const std::vector<float> got = unpadded(gpu.download<std::uint16_t>(y), rows, columns, stride, dtype);
        CHECK(worst_ratio(got, want, allowed_error(want, dtype, offset == 0 ? 2.01 : 1, 1)) <= 1);
        p.y = x_there.data();  // in place
        cuda::rms_norm(p);
        CHECK(unpadded(gpu.download<std::uint16_t>(x_there), rows, columns, stride, dtype) == got);
      }
    }
  }
}

TEST_CASE("add_norm: residual sum, Gemma's norm of the branch, next norm") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  for (const DType dtype : kTypes) {
    for (const auto& [rows, columns, padding] : kRowShapes) {
      for (const bool post : {false, true}) {
        for (const bool next : {false, true}) {
          const float offset = post ? 1.0f : 0.0f;
          CAPTURE(rows);
          CAPTURE(columns);
          CAPTURE(post);
          CAPTURE(next);
          const std::vector<float> x = random_values(rows * columns, dtype, rng, -2, 2);
          const std::vector<float> before = random_values(rows * columns, dtype, rng, -8, 8);
          const std::vector<float> post_weight = random_values(columns, dtype, rng);
          const std::vector<float> weight = random_values(columns, dtype, rng);
          DeviceBuffer x_there = gpu.upload(rounded(x, dtype)), residual = gpu.upload(rounded(before, dtype));
          DeviceBuffer post_there = gpu.upload(rounded(post_weight, dtype));
          DeviceBuffer weight_there = gpu.upload(rounded(weight, dtype));
          DeviceBuffer y = gpu.poisoned(rows * columns * 2);
          AddNormParams p;
          p.rows = static_cast<std::int64_t>(rows), p.columns = static_cast<std::int64_t>(columns);
          p.dtype = dtype;
          p.x = x_there.data();
          p.post_weight = post ? post_there.data() : nullptr;
          p.residual = residual.data();
          p.weight = next ? weight_there.data() : nullptr;
          p.weight_offset = offset, p.eps = 1e-6f;
          p.y = next ? y.data() : nullptr;
          p.stream = gpu.stream();
          add_norm(p);

          std::vector<double> branch(x.begin(), x.end());
          if (post) branch = reference::rms_norm(x, post_weight, offset, 1e-6, rows, columns);
          std::vector<double> want(branch.size()), allowed(branch.size());
          for (std::size_t i = 0; i < want.size(); ++i) {
            want[i] = before[i] + branch[i];
            allowed[i] =
                1.01 * unit_of(dtype) * (std::fabs(want[i]) + (post ? std::fabs(branch[i]) : 0)) + 1e-6;
          }
          const std::vector<float> sum = widened(gpu.download<std::uint16_t>(residual), dtype);
          CHECK(worst_ratio(sum, want, allowed) <= 1);
          const std::vector<std::uint16_t> bits = gpu.download<std::uint16_t>(y);
          if (!next) {
            CHECK(std::count(bits.begin(), bits.end(), kPoison16) ==
                  static_cast<std::ptrdiff_t>(bits.size()));
            continue;
          }
          want = reference::rms_norm(sum, weight, offset, 1e-6, rows, columns);
          CHECK(worst_ratio(widened(bits, dtype), want,
                            allowed_error(want, dtype, offset == 0 ? 2.01 : 1, 1)) <= 1);
        }
      }
    }
  }
}

TEST_CASE("gated activation on the device equals the fp64 oracle") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  for (const DType dtype : kTypes) {
    for (const auto& [rows, columns, padding] : kRowShapes) {
      for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
        CAPTURE(rows);
        CAPTURE(columns);
        // gate and up side by side, as one projection leaves them.
        const std::size_t stride = 2 * columns + padding;
        const std::vector<float> both = random_values(rows * 2 * columns, dtype, rng, -20, 20);
        DeviceBuffer in = gpu.upload(padded(both, rows, 2 * columns, stride, dtype));
        DeviceBuffer y = gpu.poisoned(rows * (columns + padding) * 2);
        cuda::GatedActivationParams p;
        p.rows = static_cast<std::int64_t>(rows), p.columns = static_cast<std::int64_t>(columns);
        p.dtype = dtype;
        p.gate = in.data(), p.up = in.as<std::uint16_t>() + columns;
        p.in_stride = static_cast<std::int64_t>(stride);
        p.y = y.data(), p.y_stride = static_cast<std::int64_t>(columns + padding);
        p.activation = activation;
        p.stream = gpu.stream();
        cuda::gated_activation(p);
        std::vector<double> want;
        for (std::size_t r = 0; r < rows; ++r) {
          for (std::size_t c = 0; c < columns; ++c) {
            const double gate = both[r * 2 * columns + c], up = both[r * 2 * columns + columns + c];
            want.push_back(
                (activation == Activation::kSilu ? reference::silu(gate) : reference::gelu_tanh(gate)) * up);
          }
        }
        // tanh near −1 loses digits in the oracle and the quick exponential a few units: hence the scale.
        CHECK(worst_ratio(unpadded(gpu.download<std::uint16_t>(y), rows, columns, columns + padding, dtype),
                          want, allowed_error(want, dtype, 1.05, 5)) <= 1);
      }
    }
  }
  // Where the exponential leaves its range.
  for (const DType dtype : kTypes) {
    const std::vector<float> gate = {-88, -100, -1000, 100, 1000, -0.0f, 87.5f, -87.5f};
    DeviceBuffer in = gpu.upload(rounded(gate, dtype));
    DeviceBuffer ones = gpu.upload(rounded(std::vector<float>(gate.size(), 1.0f), dtype));
    DeviceBuffer y = gpu.poisoned(gate.size() * 2);
    cuda::GatedActivationParams p;
    p.rows = 1, p.columns = static_cast<std::int64_t>(gate.size()), p.dtype = dtype;
    p.gate = in.data(), p.up = ones.data(), p.y = y.data();
    for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
      p.activation = activation, p.stream = gpu.stream();
      cuda::gated_activation(p);
      const std::vector<float> got = widened(gpu.download<std::uint16_t>(y), dtype);
      for (std::size_t i = 0; i < gate.size(); ++i) {
        const float held = value_of(bits_of(gate[i], dtype), dtype);
        CHECK(std::fabs(got[i] - (held > 0 ? held : 0.0f)) <= 1e-6);
      }
    }
  }
}

TEST_CASE("embedding rows: scale, and a slice of the vocabulary") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  for (const DType dtype : kTypes) {
    for (const std::size_t columns : {8u, 896u, 2560u, 13u}) {
      const std::size_t rows = 50, first = 100;
      const std::vector<float> table = random_values(rows * columns, dtype, rng);
      const std::vector<std::int32_t> tokens = {100, 149, 99, 150, 0, 123, 123, 262207};
      DeviceBuffer table_there = gpu.upload(rounded(table, dtype)), tokens_there = gpu.upload(tokens);
      DeviceBuffer out = gpu.poisoned(tokens.size() * columns * 2);
      cuda::EmbedParams p;
      p.tokens_count = static_cast<std::int64_t>(tokens.size());
      p.tokens = tokens_there.as<std::int32_t>();
      p.table = table_there.data(), p.rows = rows, p.columns = static_cast<std::int64_t>(columns);
      p.dtype = dtype, p.first_row = first, p.scale = 50.5f;
      p.out = out.data(), p.stream = gpu.stream();
      cuda::embed_rows(p);
      std::vector<double> want;
      for (const std::int32_t token : tokens) {
        const std::int64_t row = token - static_cast<std::int64_t>(first);
        for (std::size_t c = 0; c < columns; ++c) {
          const bool held = row >= 0 && row < static_cast<std::int64_t>(rows);
          want.push_back(held ? 50.5 * table[static_cast<std::size_t>(row) * columns + c] : 0.0);
        }
      }
      CHECK(worst_ratio(widened(gpu.download<std::uint16_t>(out), dtype), want,
                        allowed_error(want, dtype, 1.001, 0)) <= 1);
    }
  }
}

TEST_CASE("argmax: ties to the lower index, NaN, infinities, every dtype and alignment") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const std::size_t columns : {1u, 7u, 8u, 1000u, 8192u, 8193u, 152064u}) {
      for (const std::size_t padding : {0u, 3u, 8u}) {
        const std::size_t rows = 6, stride = columns + padding;
        std::vector<float> logits = random_floats(rows * stride, rng, -30, 30);
        if (dtype != DType::kF32) logits = widened(rounded(logits, dtype), dtype);
        // Between rows stands what would win.
        for (std::size_t r = 0; r < rows; ++r) {
          std::fill(logits.begin() + r * stride + columns, logits.begin() + (r + 1) * stride, 1000.0f);
        }
        const auto row = [&](std::size_t r) {
          return logits.begin() + static_cast<std::ptrdiff_t>(r * stride);
        };
        row(1)[columns / 2] = NAN;
        std::fill(row(2), row(2) + columns, -INFINITY);
        row(3)[columns - 1] = row(3)[columns / 3] = 64.0f;
        std::fill(row(4), row(4) + columns, -0.0f);
        row(4)[columns - 1] = 0.0f;
        row(5)[columns - 1] = INFINITY;
        DeviceBuffer there = dtype == DType::kF32 ? gpu.upload(logits) : gpu.upload(rounded(logits, dtype));
        DeviceBuffer keys = gpu.poisoned(rows * 8), indices = gpu.poisoned(rows * 4);
        DeviceBuffer values = gpu.poisoned(rows * 4);
        ArgmaxParams p;
        p.rows = rows, p.columns = static_cast<std::int64_t>(columns), p.dtype = dtype;
        p.logits = there.data(), p.stride = static_cast<std::int64_t>(stride), p.first_column = 1000;
        p.keys = keys.as<std::uint64_t>(), p.indices = indices.as<std::int32_t>(),
        p.values = values.as<float>();
        p.stream = gpu.stream();
        argmax_rows(p);
        const std::vector<std::int32_t> got = gpu.download<std::int32_t>(indices);
        const std::vector<float> best = gpu.download<float>(values);
        for (std::size_t r = 0; r < rows; ++r) {
          CAPTURE(r);
          CAPTURE(columns);
          CAPTURE(padding);
          if (r == 1) {
            CHECK(got[r] == -1);
            CHECK(std::isnan(best[r]));
            continue;
          }
          const auto want = std::max_element(row(r), row(r) + static_cast<std::ptrdiff_t>(columns));
          CHECK(got[r] == 1000 + (want - row(r)));
          CHECK(best[r] == *want);
        }
      }
    }
  }
}

TEST_CASE("conversions between dtypes, whole and at odd alignment") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  for (const std::size_t count : {0u, 1u, 8u, 4099u, 3'000'001u}) {
    for (const std::size_t shift : {0u, 1u}) {
      std::vector<float> values = random_floats(count + shift, rng, -70000, 70000);
      for (std::size_t i = 0; i < values.size(); i += 3) values[i] *= 1e-9f;
      DeviceBuffer source = gpu.upload(values);
      for (const DType dtype : kTypes) {
        DeviceBuffer narrow = gpu.poisoned((count + shift) * 2), wide = gpu.poisoned((count + shift) * 4);
        const auto n = static_cast<std::int64_t>(count);
        convert(source.as<float>() + shift, DType::kF32, narrow.as<std::uint16_t>() + shift, dtype, n,
                gpu.stream());
        convert(narrow.as<std::uint16_t>() + shift, dtype, wide.as<float>() + shift, DType::kF32, n,
                gpu.stream());
        std::vector<std::uint16_t> want = rounded(values, dtype);
        if (shift == 1) want[0] = kPoison16;
        CHECK(gpu.download<std::uint16_t>(narrow) == want);
        std::vector<float> back = gpu.download<float>(wide);
        for (std::size_t i = shift; i < back.size(); ++i) {
          if (back[i] != value_of(want[i], dtype)) {
            FAIL_CHECK("element ", i, ": ", back[i], " for ", value_of(want[i], dtype));
            break;
          }
        }
      }
    }
  }
  DeviceBuffer counts = gpu.upload(std::vector<std::int32_t>{0, -1, 41}),
               rows = gpu.upload(std::vector<std::int64_t>{6});
  increment(counts.as<std::int32_t>(), 3, gpu.stream());
  increment(rows.as<std::int64_t>(), 1, gpu.stream());
  CHECK(gpu.download<std::int32_t>(counts) == std::vector<std::int32_t>{1, 0, 42});
  CHECK(gpu.download<std::int64_t>(rows) == std::vector<std::int64_t>{7});
}

TEST_CASE("random matrices are to the bit those of the host, in any slice") {
  Gpu gpu;
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    DrawParams p;
    p.rows = 37, p.columns = 1003, p.row_begin = 5, p.column_begin = 11, p.whole_columns = 3'000'000'000;
    p.seed = seed, p.random_stream = stream_of("model.norm.weight"), p.center = 0.25f, p.half_width = 0.0173f;
    p.dtype = dtype, p.stream = gpu.stream();
    const std::size_t count = 37 * 1003, size = dtype == DType::kF32 ? 4 : 2;
    DeviceBuffer target = gpu.poisoned(count * size + 16);
    p.target = target.data();
    draw_uniform(p);
    std::vector<float> want;
    for (std::int64_t r = 5; r < 42; ++r) {
      for (std::int64_t c = 11; c < 1014; ++c) {
        const std::uint64_t counter = static_cast<std::uint64_t>(r * p.whole_columns + c);
        const std::uint64_t bits = hash_counter(seed, p.random_stream, counter) >> 40;
        const float product = p.half_width * (static_cast<float>(bits) * 0x1.0p-23f - 1.0f);
        want.push_back(p.center + product);
      }
    }
    if (dtype == DType::kF32) {
      std::vector<float> got = gpu.download<float>(target);
      CHECK(std::isnan(got[count]));
      got.resize(count);
      CHECK(got == want);
    } else {
      std::vector<std::uint16_t> got = gpu.download<std::uint16_t>(target);
      CHECK(got[count] == kPoison16);
      got.resize(count);
      CHECK(got == rounded(want, dtype));
    }
  }
}
