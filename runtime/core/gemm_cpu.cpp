#include "runtime/core/gemm.hpp"

#include <algorithm>
#include <vector>

#include "runtime/core/blas.hpp"
#include "runtime/core/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/core/gemm_cpu.cpp"
#include <hwy/foreach_target.h>

#include <hwy/cache_control.h>

#include "runtime/core/simd_inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {

constexpr std::size_t size_of_type(DType type) {
  return type == DType::kF32 ? 4 : 2;
}

template <DType kType>
HWY_INLINE float dot_tail(const std::byte* weights, const float* x, std::size_t begin, std::size_t end) {
  float sum = 0;
  for (std::size_t i = begin; i < end; ++i) sum += load_float<kType>(weights, i) * x[i];
  return sum;
}

// Four weight rows times kTokens rows of x. Every dot product has one accumulator and the same order over k
// whatever the tile, so that a row's result does not depend on how many rows came with it.
template <DType kType, int kTokens>
HWY_INLINE void dot_tile(const LinearParams& p, std::int64_t row, std::int64_t token, bool prefetch) {
  const Floats d;
  const std::size_t inner = static_cast<std::size_t>(p.weight.columns);
  const std::size_t row_bytes = inner * size_of_type(kType);
  const std::byte* weights = p.weight.data + static_cast<std::size_t>(row) * row_bytes;
  const std::size_t x_stride = static_cast<std::size_t>(p.x_stride);
  const float* x = p.x + token * p.x_stride;
  FloatVec sums[kTokens][4];
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < 4; ++r) sums[t][r] = hn::Zero(d);
  }
  std::size_t i = 0;
  for (; i + kLanes <= inner; i += kLanes) {
    if (prefetch) {  // short rows end before the hardware has seen a pattern: ask for the next four ourselves
      const std::byte* next = weights + 4 * row_bytes + i * size_of_type(kType);
      for (int r = 0; r < 4; ++r) hwy::Prefetch(next + r * row_bytes);
    }
    FloatVec xs[kTokens];
    for (int t = 0; t < kTokens; ++t) xs[t] = hn::LoadU(d, x + t * x_stride + i);
    for (int r = 0; r < 4; ++r) {
      const FloatVec w = load_floats<kType>(weights + r * row_bytes, i);
      for (int t = 0; t < kTokens; ++t) sums[t][r] = hn::MulAdd(w, xs[t], sums[t][r]);
    }
  }
  float* y = p.y + token * p.y_stride + row;
  HWY_ALIGN float totals[kTokens][4];
  for (int t = 0; t < kTokens; ++t) sum_four(sums[t], totals[t]);
  if (i < inner) {
    for (int t = 0; t < kTokens; ++t) {
      for (int r = 0; r < 4; ++r) {
        totals[t][r] += dot_tail<kType>(weights + r * row_bytes, x + t * x_stride, i, inner);
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < 4; ++r) {
      y[t * p.y_stride + r] = p.bias != nullptr ? totals[t][r] + p.bias[row + r] : totals[t][r];
    }
  }
}

// Four weight rows against all tokens: the rows come from memory once and stay in L1.
template <DType kType>
HWY_INLINE void dot_rows(const LinearParams& p, std::int64_t row) {
  std::int64_t token = 0;
  for (; token + 4 <= p.rows; token += 4) dot_tile<kType, 4>(p, row, token, token == 0);
  switch (p.rows - token) {
    case 3:
      return dot_tile<kType, 3>(p, row, token, token == 0);
    case 2:
      return dot_tile<kType, 2>(p, row, token, token == 0);
    case 1:
      return dot_tile<kType, 1>(p, row, token, token == 0);
    default:
      return;
  }
}

// One weight row, where fewer than four are left.
template <DType kType>
void dot_last_row(const LinearParams& p, std::int64_t row) {
  const Floats d;
  const std::size_t inner = static_cast<std::size_t>(p.weight.columns);
  const std::byte* weights = p.weight.data + static_cast<std::size_t>(row) * inner * size_of_type(kType);
  for (std::int64_t t = 0; t < p.rows; ++t) {
    const float* x = p.x + t * p.x_stride;
    FloatVec sums[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
    std::size_t i = 0;
    for (; i + kLanes <= inner; i += kLanes) {
      sums[0] = hn::MulAdd(load_floats<kType>(weights, i), hn::LoadU(d, x + i), sums[0]);
    }
    HWY_ALIGN float totals[4];
    sum_four(sums, totals);
    const float sum = totals[0] + dot_tail<kType>(weights, x, i, inner);
    p.y[t * p.y_stride + row] = p.bias != nullptr ? sum + p.bias[row] : sum;
  }
}

template <DType kType>
void skinny_rows(const LinearParams& p, std::int64_t begin, std::int64_t end) {
  std::int64_t row = begin;
  for (; row + 4 <= end; row += 4) dot_rows<kType>(p, row);
  for (; row < end; ++row) dot_last_row<kType>(p, row);
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

constexpr std::int64_t kSkinnyRows = 16;   // up to here a pass over the weights is bound by memory
constexpr std::int64_t kSkinnyBlock = 32;  // weight rows a task
constexpr std::int64_t kTileRows = 1024;   // of x and y, at most
constexpr std::int64_t kTileColumns =
    512;  // of y (rows of the weight), at most: BLAS packs x again for each tile
constexpr std::int64_t kTileInner = 1024;      // 512 · 1024 floats: a converted tile is at most 2 MiB
constexpr std::int64_t kEnoughTasks = 8;       // small problems are cut smaller, to feed several threads
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

struct Tiling {
  std::int64_t row_tiles = 1;
  std::int64_t column_tiles = 1;
  std::int64_t rows = 0;     // of a tile
  std::int64_t columns = 0;  // of a tile
};

// Even tiles, a function of the shape alone: the result must not depend on the number of threads. BLAS is at
// its best on large tiles, so that they shrink only while there are few.
Tiling choose_tiling(std::int64_t rows, std::int64_t columns) {
  Tiling t;
  t.row_tiles = ceil_div(rows, kTileRows);
  t.column_tiles = ceil_div(columns, kTileColumns);
  const auto split_while = [&](std::int64_t& tiles, std::int64_t size, std::int64_t smallest) {
    while (t.row_tiles * t.column_tiles < kEnoughTasks && ceil_div(size, 2 * tiles) >= smallest) tiles *= 2;
  };
  split_while(t.column_tiles, columns, 192);
  split_while(t.row_tiles, rows, 256);
  split_while(t.column_tiles, columns, 96);
  t.rows = ceil_div(rows, t.row_tiles);
  t.columns = ceil_div(ceil_div(columns, t.column_tiles), 16) * 16;
  t.column_tiles = ceil_div(columns, t.columns);
  return t;
}

// One part of a weight as floats, in scratch of the thread.
class WeightTile {
 public:
  explicit WeightTile(const MatrixView& weight) : weight_(weight), direct_(usable_as_floats(weight)) {}

  // Rows first … first + rows − 1, columns k … k + inner − 1. Kept until another part is asked for:
  // neighbouring tasks share the weight.
  void point(BlasProduct& product, std::int64_t first, std::int64_t k) {
    if (direct_) {
      product.weight = reinterpret_cast<const float*>(weight_.data) + first * weight_.columns + k;
      product.weight_stride = weight_.columns;
      return;
    }
    if (first != first_ || k != k_) convert(product.columns, product.inner, first, k);
    product.weight = floats_.data();
    product.weight_stride = product.inner;
  }

 private:
  void convert(std::int64_t rows, std::int64_t inner, std::int64_t first, std::int64_t k) {
    floats_.resize(static_cast<std::size_t>(std::max<std::int64_t>(rows * inner, floats_.size())));
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t element = (first + row) * weight_.columns + k;
      convert_to_float(weight_.data + element * static_cast<std::int64_t>(size_of(weight_.dtype)),
                       weight_.dtype, floats_.data() + row * inner, static_cast<std::size_t>(inner));
    }
    first_ = first;
    k_ = k;
  }

  const MatrixView& weight_;
  bool direct_;
  std::vector<float> floats_;
  std::int64_t first_ = -1;
  std::int64_t k_ = -1;
};

void linear_many_rows(const LinearParams& p) {
  const std::int64_t inner = p.weight.columns;
  const std::int64_t inner_step = ceil_div(inner, ceil_div(inner, kTileInner));
  const Tiling tiling = choose_tiling(p.rows, p.weight.rows);
#pragma omp parallel
  {
    WeightTile tile(p.weight);
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t task = 0; task < tiling.row_tiles * tiling.column_tiles; ++task) {
      const std::int64_t column = task / tiling.row_tiles * tiling.columns;
      const std::int64_t row = task % tiling.row_tiles * tiling.rows;
      BlasProduct product;
      product.rows = std::min(tiling.rows, p.rows - row);
      product.columns = std::min(tiling.columns, p.weight.rows - column);
      if (product.rows <= 0) continue;
      product.x_stride = p.x_stride;
      product.y = p.y + row * p.y_stride + column;
      product.y_stride = p.y_stride;
      if (p.bias != nullptr) fill_bias(p, row, product.rows, column, product.columns);
      product.accumulate = p.bias != nullptr;
      for (std::int64_t k = 0; k < inner; k += inner_step) {
        product.inner = std::min(inner_step, inner - k);
        product.x = p.x + row * p.x_stride + k;
        tile.point(product, column, k);
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
