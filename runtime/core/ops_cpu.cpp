#include "runtime/core/ops.hpp"

#include <algorithm>
#include <cmath>

#include "runtime/core/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/core/ops_cpu.cpp"
#include <hwy/foreach_target.h>

#include <hwy/contrib/math/math-inl.h>

#include "runtime/core/simd_inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {

void norm_row(const RmsNormParams& p, std::int64_t row) {
  const Floats d;
  const std::size_t n = static_cast<std::size_t>(p.columns);
  const float* x = p.x + row * p.x_stride;
  float* y = p.y + row * p.y_stride;
  FloatVec squares = hn::Zero(d);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const FloatVec v = hn::LoadU(d, x + i);
    squares = hn::MulAdd(v, v, squares);
  }
  float sum = sum_of(squares);
  for (; i < n; ++i) sum += x[i] * x[i];
  const float factor = 1.0f / std::sqrt(sum / static_cast<float>(n) + p.eps);

  const FloatVec factors = hn::Set(d, factor);
  const FloatVec offset = hn::Set(d, p.weight_offset);
  for (i = 0; i + kLanes <= n; i += kLanes) {
    const FloatVec w = hn::Add(hn::LoadU(d, p.weight + i), offset);
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), factors), w), d, y + i);
  }
  for (; i < n; ++i) y[i] = x[i] * factor * (p.weight[i] + p.weight_offset);
}

void rotate_token(const RopeParams& p, std::int64_t token) {
  const Floats d;
  const std::size_t half = static_cast<std::size_t>(p.head_dim / 2);
  const float* c = p.cosines + static_cast<std::size_t>(p.positions[token]) * half;
  const float* s = p.sines + static_cast<std::size_t>(p.positions[token]) * half;
  for (int head = 0; head < p.heads; ++head) {
    float* low = p.x + token * p.row_stride + static_cast<std::int64_t>(head) * p.head_dim;
    float* high = low + half;
    std::size_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
      const FloatVec a = hn::LoadU(d, low + i);
      const FloatVec b = hn::LoadU(d, high + i);
      const FloatVec cosine = hn::LoadU(d, c + i);
      const FloatVec sine = hn::LoadU(d, s + i);
      hn::StoreU(hn::NegMulAdd(b, sine, hn::Mul(a, cosine)), d, low + i);
      hn::StoreU(hn::MulAdd(a, sine, hn::Mul(b, cosine)), d, high + i);
    }
    for (; i < half; ++i) {
      const float a = low[i];
      const float b = high[i];
      low[i] = a * c[i] - b * s[i];
      high[i] = b * c[i] + a * s[i];
    }
  }
}

// x · sigmoid(z) with exp kept from overflow; NaN stays NaN.
HWY_INLINE FloatVec times_sigmoid(FloatVec x, FloatVec z) {
  const Floats d;
  const FloatVec limit = hn::Set(d, 88.0f);
  const FloatVec minus = hn::Neg(z);
  const FloatVec bounded = hn::IfThenElse(hn::Gt(minus, limit), limit, minus);
  return hn::Div(x, hn::Add(hn::Set(d, 1.0f), hn::Exp(d, bounded)));
}

// gelu by its tanh form (Hendrycks & Gimpel 2016): x/2 · (1 + tanh u) = x · sigmoid(2u), u = √(2/π)(x +
// 0.044715 x³).
HWY_INLINE FloatVec activate(FloatVec x, Activation activation) {
  const Floats d;
  if (activation == Activation::kSilu) return times_sigmoid(x, x);
  const FloatVec cubic = hn::MulAdd(hn::Mul(hn::Mul(x, x), x), hn::Set(d, 0.044715f), x);
  return times_sigmoid(x, hn::Mul(cubic, hn::Set(d, 1.5957691216057308f)));
}

void activate_range(const GatedActivationParams& p, std::int64_t begin, std::int64_t end) {
  const Floats d;
  const std::int64_t lanes = static_cast<std::int64_t>(kLanes);
  std::int64_t i = begin;
  for (; i + lanes <= end; i += lanes) {
    const FloatVec y = hn::Mul(activate(hn::LoadU(d, p.gate + i), p.activation), hn::LoadU(d, p.up + i));
    hn::StoreU(y, d, p.y + i);
  }
  if (i == end) return;
  float gate[kLanes] = {};
  std::copy(p.gate + i, p.gate + end, gate);
  hn::StoreU(activate(hn::LoadU(d, gate), p.activation), d, gate);
  for (std::int64_t k = i; k < end; ++k) p.y[k] = gate[k - i] * p.up[k];
}

void add_range(float* y, const float* x, std::int64_t begin, std::int64_t end) {
  const Floats d;
  const std::int64_t lanes = static_cast<std::int64_t>(kLanes);
  std::int64_t i = begin;
  for (; i + lanes <= end; i += lanes)
    hn::StoreU(hn::Add(hn::LoadU(d, y + i), hn::LoadU(d, x + i)), d, y + i);
  for (; i < end; ++i) y[i] += x[i];
}

}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {

HWY_EXPORT(norm_row);
HWY_EXPORT(rotate_token);
HWY_EXPORT(activate_range);
HWY_EXPORT(add_range);

constexpr std::int64_t kSerialWork = 1 << 14;  // elements below which threads cost more than they give
constexpr std::int64_t kChunk = 1 << 13;       // elements a task of elementwise work

}  // namespace

void rms_norm(const RmsNormParams& params) {
  RmsNormParams p = params;
  if (p.x_stride == 0) p.x_stride = p.columns;
  if (p.y_stride == 0) p.y_stride = p.columns;
#pragma omp parallel for schedule(static) if (p.rows * p.columns > kSerialWork)
  for (std::int64_t row = 0; row < p.rows; ++row) HWY_DYNAMIC_DISPATCH(norm_row)(p, row);
}

void apply_rope(const RopeParams& params) {
  RopeParams p = params;
  if (p.row_stride == 0) p.row_stride = static_cast<std::int64_t>(p.heads) * p.head_dim;
#pragma omp parallel for schedule(static) if (p.tokens * p.heads * p.head_dim > kSerialWork)
  for (std::int64_t token = 0; token < p.tokens; ++token) HWY_DYNAMIC_DISPATCH(rotate_token)(p, token);
}

void gated_activation(const GatedActivationParams& p) {
#pragma omp parallel for schedule(static) if (p.count > kSerialWork)
  for (std::int64_t begin = 0; begin < p.count; begin += kChunk) {
    HWY_DYNAMIC_DISPATCH(activate_range)(p, begin, std::min(begin + kChunk, p.count));
  }
}

void add_in_place(float* y, const float* x, std::int64_t count, StreamView) {
#pragma omp parallel for schedule(static) if (count > kSerialWork)
  for (std::int64_t begin = 0; begin < count; begin += kChunk)
    HWY_DYNAMIC_DISPATCH(add_range)(y, x, begin, std::min(begin + kChunk, count));
}

void embed_rows(const EmbedParams& p) {
  const std::int64_t columns = p.table.columns;
#pragma omp parallel for schedule(static) if (p.tokens_count * columns > kSerialWork)
  for (std::int64_t t = 0; t < p.tokens_count; ++t) {
    float* out = p.out + t * columns;
    const std::int64_t row = p.tokens[t] - p.first_row;
    if (row < 0 || row >= p.table.rows) {
      std::fill_n(out, columns, 0.0f);
      continue;
    }
    const std::size_t offset = static_cast<std::size_t>(row) * columns * size_of(p.table.dtype);
    convert_to_float(p.table.data + offset, p.table.dtype, out, static_cast<std::size_t>(columns));
    if (p.scale == 1.0f) continue;
    for (std::int64_t i = 0; i < columns; ++i) out[i] *= p.scale;
  }
}

Maximum argmax(const float* values, std::int64_t count) {
  Maximum best{values[0], 0};
  bool nan = false;
  for (std::int64_t i = 0; i < count; ++i) {
    nan |= std::isnan(values[i]);
    if (values[i] > best.value) best = {values[i], i};
  }
  if (nan) return {std::nanf(""), -1};
  return best;
}

}  // namespace tessera
#endif  // HWY_ONCE
