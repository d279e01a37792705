// Micro-kernels that CPU attention is made of, compiled once for each instruction set: include after
// hwy/foreach_target.h. Query rows lie in the lanes of a vector: a tile of 64 rows is stored transposed, so
// that scores, probabilities and outputs are (key or channel, row) matrices whose row maxima and sums need no
// shuffles, and keys and values are read where they lie in the cache, as broadcast operands.
#if defined(TESSERA_ATTENTION_CPU_TILES_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_ATTENTION_CPU_TILES_HPP
#undef TESSERA_ATTENTION_CPU_TILES_HPP
#else
#define TESSERA_ATTENTION_CPU_TILES_HPP
#endif

#include "kvcache/kv_view.hpp"
#include "runtime/core/simd_inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {

// C (m, n) = factor · C + A (m, k) · B (k, n). A's element (i, j) lies at a[i · row_step + j · inner_step].
struct TileProduct {
  const float* a = nullptr;
  std::size_t row_step = 0;
  std::size_t inner_step = 0;
  const float* b = nullptr;
  std::size_t b_stride = 0;
  float* c = nullptr;
  std::size_t c_stride = 0;
  std::size_t inner = 0;           // k
  bool accumulate = false;         // false: C is overwritten
  const float* factors = nullptr;  // (n): with accumulate, C's columns are scaled first; null: by 1
};

// kM rows of C by kN vectors of columns, held in registers.
template <int kM, int kN>
HWY_INLINE void multiply_registers(const TileProduct& p, std::size_t row, std::size_t column) {
  const Floats d;
  FloatVec sums[kM][kN];
  float* c = p.c + row * p.c_stride + column;
  if (p.accumulate && p.factors == nullptr) {
    for (int i = 0; i < kM; ++i) {
      for (int j = 0; j < kN; ++j) sums[i][j] = hn::LoadU(d, c + i * p.c_stride + j * kLanes);
    }
  } else if (p.accumulate) {
    for (int j = 0; j < kN; ++j) {
      const FloatVec factor = hn::LoadU(d, p.factors + column + j * kLanes);
      for (int i = 0; i < kM; ++i) {
        sums[i][j] = hn::Mul(factor, hn::LoadU(d, c + i * p.c_stride + j * kLanes));
      }
    }
  } else {
    for (int i = 0; i < kM; ++i) {
      for (int j = 0; j < kN; ++j) sums[i][j] = hn::Zero(d);
    }
  }
  const float* a = p.a + row * p.row_step;
  const float* b = p.b + column;
  const std::size_t row_step = p.row_step;
  for (std::size_t k = 0; k < p.inner; ++k) {
    FloatVec bs[kN];
    for (int j = 0; j < kN; ++j) bs[j] = hn::LoadU(d, b + j * kLanes);
    for (int i = 0; i < kM; ++i) {
      const FloatVec value = hn::Set(d, a[i * row_step]);
      for (int j = 0; j < kN; ++j) sums[i][j] = hn::MulAdd(value, bs[j], sums[i][j]);
    }
    a += p.inner_step;
    b += p.b_stride;
  }
  for (int i = 0; i < kM; ++i) {
    for (int j = 0; j < kN; ++j) hn::StoreU(sums[i][j], d, c + i * p.c_stride + j * kLanes);
  }
}

#if HWY_TARGET == HWY_AVX3
inline constexpr int kRegisterVectors = 4;
#else
inline constexpr int kRegisterVectors = 2;
#endif

template <int kM>
HWY_INLINE void multiply_rows(const TileProduct& p, std::size_t row, std::size_t columns) {
  std::size_t column = 0;
  for (; column + kRegisterVectors * kLanes <= columns; column += kRegisterVectors * kLanes) {
    multiply_registers<kM, kRegisterVectors>(p, row, column);
  }
  for (; column < columns; column += kLanes) multiply_registers<kM, 1>(p, row, column);
}

// Rows first … last − 1 of C over `columns` columns, a multiple of kLanes.
HWY_INLINE void multiply_tile(const TileProduct& p, std::size_t first, std::size_t last,
                              std::size_t columns) {
  std::size_t row = first;
  for (; row + 4 <= last; row += 4) multiply_rows<4>(p, row, columns);
  switch (last - row) {
    case 3:
      return multiply_rows<3>(p, row, columns);
    case 2:
      return multiply_rows<2>(p, row, columns);
    case 1:
      return multiply_rows<1>(p, row, columns);
    default:
      return;
  }
}

// `rows` rows of head_dim elements as floats; fp32 data are read where they are.
HWY_INLINE const float* rows_as_floats(const std::byte* source, DType dtype, std::size_t rows,
                                       std::size_t head_dim, float* scratch) {
  if (dtype == DType::kF32) return reinterpret_cast<const float*>(source);
  convert_to_float(source, dtype, scratch, rows * head_dim);
  return scratch;
}

}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#endif
