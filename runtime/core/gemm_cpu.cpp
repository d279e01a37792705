#include "runtime/core/gemm.hpp"

#include <algorithm>
#include <vector>

#include "runtime/core/blas.hpp"
#include "runtime/core/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/core/gemm_cpu.cpp"
#include <hwy/foreach_target.h>

#include "runtime/core/simd_inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {

// kRows weight rows times kTokens rows of x. Every dot product has one accumulator and the same order over k
// whatever the tile, so that a row's result does not depend on how many rows came with it.
template <DType kType, int kRows, int kTokens>
HWY_INLINE void dot_tile(const LinearParams& p, std::int64_t row, std::int64_t token) {
  const Floats d;
  const std::size_t inner = static_cast<std::size_t>(p.weight.columns);
  const std::byte* weights = p.weight.data + row * p.weight.columns * size_of(kType);
  const float* x = p.x + token * p.x_stride;
  FloatVec sums[kRows][kTokens];
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) sums[r][t] = hn::Zero(d);
  }
  std::size_t i = 0;
  for (; i + kLanes <= inner; i += kLanes) {
    FloatVec xs[kTokens];
    for (int t = 0; t < kTokens; ++t) xs[t] = hn::LoadU(d, x + t * p.x_stride + i);
    for (int r = 0; r < kRows; ++r) {
      const FloatVec w = load_floats<kType>(weights, r * inner + i);
      for (int t = 0; t < kTokens; ++t) sums[r][t] = hn::MulAdd(w, xs[t], sums[r][t]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const float bias = p.bias != nullptr ? p.bias[row + r] : 0.0f;
    for (int t = 0; t < kTokens; ++t) {
      float sum = sum_of(sums[r][t]);
      for (std::size_t k = i; k < inner; ++k)
        sum += load_float<kType>(weights, r * inner + k) * x[t * p.x_stride + k];
      p.y[(token + t) * p.y_stride + row + r] = sum + bias;
    }
  }
}

// kRows weight rows against all tokens: the rows come from memory once and stay in L1.
template <DType kType, int kRows>
HWY_INLINE void dot_rows(const LinearParams& p, std::int64_t row) {
  std::int64_t token = 0;
  for (; token + 4 <= p.rows; token += 4) dot_tile<kType, kRows, 4>(p, row, token);
  switch (p.rows - token) {
    case 3:
      return dot_tile<kType, kRows, 3>(p, row, token);
    case 2:
      return dot_tile<kType, kRows, 2>(p, row, token);
    case 1:
      return dot_tile<kType, kRows, 1>(p, row, token);
    default:
      return;
  }
}

template <DType kType>
void skinny_rows(const LinearParams& p, std::int64_t begin, std::int64_t end) {
  std::int64_t row = begin;
  if (p.rows == 1) {  // one accumulator a row: eight rows hide the latency of the multiply-add
    for (; row + 8 <= end; row += 8) dot_tile<kType, 8, 1>(p, row, 0);
  }
  for (; row + 4 <= end; row += 4) dot_rows<kType, 4>(p, row);
  for (; row < end; ++row) dot_rows<kType, 1>(p, row);
}

void skinny_product(const LinearParams& p, std::int64_t begin, std::int64_t end) {
  switch (p.weight.dtype) {
    case DType::kF32:
      return skinny_rows<DType::kF32>(p, begin, end);
    case DType::kBF16:
      return skinny_rows<DType::kBF16>(p, begin, end);
    case DType::kF16:
      return skinny_rows<DType::kF16>(p, begin, end);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera {
namespace {

HWY_EXPORT(skinny_product);

constexpr std::int64_t kSkinnyRows = 16;       // up to here a pass over the weights is bound by memory
constexpr std::int64_t kSkinnyBlock = 32;      // weight rows a task
constexpr std::int64_t kTileRows = 512;        // of x and y
constexpr std::int64_t kTileColumns = 256;     // of y: rows of the weight
constexpr std::int64_t kTileInner = 1024;      // 256 · 1024 floats: a converted tile is 1 MiB
constexpr std::int64_t kSerialWork = 1 << 15;  // multiply-adds below which threads cost more than they give

void linear_few_rows(const LinearParams& p) {
  const std::int64_t blocks = ceil_div(p.weight.rows, kSkinnyBlock);
  const bool parallel = p.weight.rows * p.weight.columns * p.rows > kSerialWork;
#pragma omp parallel for schedule(static) if (parallel)
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t begin = block * kSkinnyBlock;
    HWY_DYNAMIC_DISPATCH(skinny_product)(p, begin, std::min(begin + kSkinnyBlock, p.weight.rows));
  }
}

bool usable_as_floats(const MatrixView& weight) {
  return weight.dtype == DType::kF32 && reinterpret_cast<std::uintptr_t>(weight.data) % alignof(float) == 0;
}

void fill_bias(const LinearParams& p, std::int64_t row, std::int64_t rows, std::int64_t column,
               std::int64_t columns) {
  for (std::int64_t i = row; i < row + rows; ++i) {
    std::copy_n(p.bias + column, columns, p.y + i * p.y_stride + column);
  }
}

// Tiles are fixed by the problem, so the result does not depend on the number of threads. A tile of the
// weight is converted by the thread that needs it, which keeps it while the next task has the same one (tasks
// of one tile are neighbours).
void linear_many_rows(const LinearParams& p) {
  const std::int64_t inner = p.weight.columns;
  const std::int64_t row_tiles = ceil_div(p.rows, kTileRows);
  const std::int64_t column_tiles = ceil_div(p.weight.rows, kTileColumns);
  const bool direct = usable_as_floats(p.weight);
#pragma omp parallel
  {
    std::vector<float> converted;
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t task = 0; task < row_tiles * column_tiles; ++task) {
      const std::int64_t column = task / row_tiles * kTileColumns;
      const std::int64_t row = task % row_tiles * kTileRows;
      BlasProduct product;
      product.rows = std::min(kTileRows, p.rows - row);
      product.columns = std::min(kTileColumns, p.weight.rows - column);
      product.x_stride = p.x_stride;
      product.y = p.y + row * p.y_stride + column;
      product.y_stride = p.y_stride;
      if (p.bias != nullptr) fill_bias(p, row, product.rows, column, product.columns);
      product.accumulate = p.bias != nullptr;
      for (std::int64_t k = 0; k < inner; k += kTileInner) {
        product.inner = std::min(kTileInner, inner - k);
        product.x = p.x + row * p.x_stride + k;
        if (direct) {
          product.weight = reinterpret_cast<const float*>(p.weight.data) + column * inner + k;
          product.weight_stride = inner;
        } else {
          converted.resize(kTileColumns * kTileInner);
          for (std::int64_t j = 0; j < product.columns; ++j) {
            convert_to_float(p.weight.data + ((column + j) * inner + k) * size_of(p.weight.dtype),
                             p.weight.dtype, converted.data() + j * product.inner, product.inner);
          }
          product.weight = converted.data();
          product.weight_stride = product.inner;
        }
        multiply_in_this_thread(product);
        product.accumulate = true;
      }
    }
  }
}

}  // namespace

void linear(const LinearParams& params) {
  LinearParams p = params;
  if (p.x_stride == 0) p.x_stride = p.weight.columns;
  if (p.y_stride == 0) p.y_stride = p.weight.rows;
  if (p.rows == 0 || p.weight.rows == 0) return;
  if (p.rows <= kSkinnyRows || p.weight.columns == 0) {
    linear_few_rows(p);
  } else {
    linear_many_rows(p);
  }
}

}  // namespace tessera
#endif  // HWY_ONCE
