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

// The left operand A (m, k) of a product, as a matrix with strides: element (i, j) at data[i · row_step + j ·
// inner_step]. A cursor walks along k beside kM neighbouring rows.
struct StridedOperand {
  const float* data = nullptr;
  std::size_t row_step = 0;
  std::size_t inner_step = 0;

  struct Cursor {
    const float* at;
    std::size_t row_step;
    std::size_t inner_step;
    HWY_INLINE float operator[](int i) const { return at[i * row_step]; }
    HWY_INLINE void next() { at += inner_step; }
  };
  template <int kM>
  HWY_INLINE Cursor start(std::size_t row) const {
    return {data + row * row_step, row_step, inner_step};
  }
};

// Rows that lie anywhere in memory: element (i, j) at rows[i][j].
struct RowsOperand {
  const float* const* rows = nullptr;

  template <int kM>
  struct Cursor {
    const float* at[kM];
    std::size_t inner;
    HWY_INLINE float operator[](int i) const { return at[i][inner]; }
    HWY_INLINE void next() { ++inner; }
  };
  template <int kM>
  HWY_INLINE Cursor<kM> start(std::size_t row) const {
    Cursor<kM> cursor;
    for (int i = 0; i < kM; ++i) cursor.at[i] = rows[row + i];
    cursor.inner = 0;
    return cursor;
  }
};

// The transpose of such rows: element (i, j) at columns[j][i].
struct ColumnsOperand {
  const float* const* columns = nullptr;

  struct Cursor {
    const float* const* at;
    std::size_t row;
    HWY_INLINE float operator[](int i) const { return (*at)[row + i]; }
    HWY_INLINE void next() { ++at; }
  };
  template <int kM>
  HWY_INLINE Cursor start(std::size_t row) const {
    return {columns, row};
  }
};

// C (m, n) = factor · C + A (m, k) · B (k, n).
template <class Operand>
struct TileProduct {
  Operand a;
  const float* b = nullptr;
  std::size_t b_stride = 0;
  float* c = nullptr;
  std::size_t c_stride = 0;
  std::size_t inner = 0;           // k
  bool accumulate = false;         // false: C is overwritten
  const float* factors = nullptr;  // (n): with accumulate, C's columns are scaled first; null: by 1
};

// kM rows of C by kN vectors of columns, held in registers.
template <int kM, int kN, class Operand>
HWY_INLINE void multiply_registers(const TileProduct<Operand>& p, std::size_t row, std::size_t column) {
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
  auto a = p.a.template start<kM>(row);
  const float* b = p.b + column;
  for (std::size_t k = 0; k < p.inner; ++k) {
    FloatVec bs[kN];
    for (int j = 0; j < kN; ++j) bs[j] = hn::LoadU(d, b + j * kLanes);
    for (int i = 0; i < kM; ++i) {
      const FloatVec value = hn::Set(d, a[i]);
      for (int j = 0; j < kN; ++j) sums[i][j] = hn::MulAdd(value, bs[j], sums[i][j]);
    }
    a.next();
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

template <int kM, class Operand>
HWY_INLINE void multiply_rows(const TileProduct<Operand>& p, std::size_t row, std::size_t columns) {
  std::size_t column = 0;
  for (; column + kRegisterVectors * kLanes <= columns; column += kRegisterVectors * kLanes) {
    multiply_registers<kM, kRegisterVectors>(p, row, column);
  }
  if constexpr (kRegisterVectors == 4) {
    if (column + 2 * kLanes <= columns) {
      multiply_registers<kM, 2>(p, row, column);
      column += 2 * kLanes;
    }
  }
  for (; column < columns; column += kLanes) multiply_registers<kM, 1>(p, row, column);
}

// Rows first … last − 1 of C over `columns` columns, a multiple of kLanes.
template <class Operand>
HWY_INLINE void multiply_tile(const TileProduct<Operand>& p, std::size_t first, std::size_t last,
                              std::size_t columns) {
  std::size_t row = first;
  if (columns == kLanes) {  // one vector a row: eight rows keep the multipliers busy
    for (; row + 8 <= last; row += 8) multiply_registers<8, 1>(p, row, 0);
  }
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
