// Pieces of a softmax whose sums are Fixed, for tiles of 64 query rows in lanes as in
// attention/cpu_tiles.hpp: include after hwy/foreach_target.h. Scores are (keys, 64) matrices.
#if defined(TESSERA_ATTENTION_SOFTMAX_TILES_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_ATTENTION_SOFTMAX_TILES_HPP
#undef TESSERA_ATTENTION_SOFTMAX_TILES_HPP
#else
#define TESSERA_ATTENTION_SOFTMAX_TILES_HPP
#endif

#include <algorithm>
#include <limits>

#include "attention/cpu_tiles.hpp"
#include "attention/fixed_point.hpp"
#include "runtime/core/tensor.hpp"

HWY_BEFORE_NAMESPACE();
namespace tessera {
namespace HWY_NAMESPACE {

inline constexpr std::size_t kTileRows = kQueryBlockRows;
inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

using Doubles = hn::ScalableTag<double>;
using DoubleVec = hn::Vec<Doubles>;
using HalfFloats = hn::Rebind<float, Doubles>;
using Integers = hn::RebindToSigned<Doubles>;
using IntegerVec = hn::Vec<Integers>;
inline constexpr std::size_t kWideLanes = HWY_LANES(double);
inline constexpr std::size_t kWideGroups = kTileRows / kWideLanes;

// exp(x) for x ≤ 0 to about 1e-7 relative; 0 below −29 and for −inf. Reduction and polynomial of Cephes' expf
// (Moshier).
HWY_INLINE FloatVec exp_of(FloatVec x) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  const FloatVec magic = hn::Set(d, 12582912.0f);  // 1.5 · 2^23: rounds to the nearest integer
  const FloatVec shifted = hn::MulAdd(x, hn::Set(d, 1.4426950408889634f), magic);
  const FloatVec n = hn::Sub(shifted, magic);
  FloatVec r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  FloatVec p = hn::Set(d, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  const FloatVec power = hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -29.0f)), power);
}

// A double v in [0, 2^51) added to 1.5 · 2^52 is rounded to the nearest integer, which lies in the low bits:
// Fixed without a conversion instruction that AVX2 lacks. Sums of the raw bits wrap, and are right once the
// bias is taken off n times.
inline constexpr double kFixedBias = 6755399441055744.0;
inline constexpr std::uint64_t kFixedBiasBits = 0x4338000000000000ull;
inline constexpr double kFixedOne = 1099511627776.0;  // 2^40
static_assert(kFixedFractionBits == 40);

// Probabilities p in [0, 1] rounded to nearest even.
template <DType kRound>
HWY_INLINE hn::Vec<HalfFloats> round_to_dtype(hn::Vec<HalfFloats> p) {
  const HalfFloats d;
  const hn::RebindToUnsigned<HalfFloats> du;
  constexpr int kDropped = kRound == DType::kBF16 ? 16 : 13;  // mantissa bits
  const auto bits = hn::BitCast(du, p);
  const auto odd = hn::And(hn::ShiftRight<kDropped>(bits), hn::Set(du, 1u));
  const auto up = hn::Add(hn::Add(bits, hn::Set(du, (1u << (kDropped - 1)) - 1)), odd);
  const auto rounded = hn::BitCast(d, hn::And(up, hn::Set(du, ~((1u << kDropped) - 1))));
  if constexpr (kRound == DType::kBF16) return rounded;
  // Below 2^-14 half precision has steps of 2^-24, which is what floats in [1/2, 1) have.
  const auto shift = hn::Set(d, 0.75f);
  const auto small = hn::Sub(hn::Add(p, shift), shift);
  return hn::IfThenElse(hn::Lt(p, hn::Set(d, 6.103515625e-5f)), small, rounded);
}

// Fixed p of kWideLanes rows, with the bias. factor: 2^40 / denominator without rounding, 1 / denominator
// with it.
template <DType kRound>
HWY_INLINE DoubleVec biased_probability(const float* weights, DoubleVec factor) {
  const Doubles d;
  const HalfFloats half;
  const DoubleVec weight = hn::PromoteTo(d, hn::LoadU(half, weights));
  const DoubleVec bias = hn::Set(d, kFixedBias);
  if constexpr (kRound == DType::kF32) return hn::MulAdd(weight, factor, bias);
  const auto rounded = round_to_dtype<kRound>(hn::DemoteTo(half, hn::Mul(weight, factor)));
  return hn::MulAdd(hn::PromoteTo(d, rounded), hn::Set(d, kFixedOne), bias);
}

struct ScoreTile {
  std::size_t keys = 0;
  float* scores = nullptr;  // (keys, 64)
};

inline void scale_scores(const ScoreTile& tile, float scale) {
  const Floats d;
  const FloatVec factor = hn::Set(d, scale);
  for (std::size_t i = 0; i < tile.keys * kTileRows; i += kLanes) {
    hn::StoreU(hn::Mul(factor, hn::LoadU(d, tile.scores + i)), d, tile.scores + i);
  }
}

// Writes −inf where the causal mask hides a key. lead: position of the tile's first key less that of lane 0.
inline void hide_newer_keys(const ScoreTile& tile, std::int64_t lead) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  for (std::size_t key = 0; key < tile.keys; ++key, ++lead) {
    if (lead <= 0) continue;
    const auto hidden_below = hn::Set(di, static_cast<std::int32_t>(std::min<std::int64_t>(lead, kTileRows)));
    for (std::size_t r = 0; r < kTileRows; r += kLanes) {
      float* score = tile.scores + key * kTileRows + r;
      const auto hidden = hn::Lt(hn::Iota(di, static_cast<std::int32_t>(r)), hidden_below);
      hn::StoreU(hn::IfThenElse(hn::RebindMask(d, hidden), hn::Set(d, kMinusInfinity), hn::LoadU(d, score)),
                 d, score);
    }
  }
}

inline void raise_maxima(const ScoreTile& tile, float* maxima) {
  const Floats d;
  for (std::size_t r = 0; r < kTileRows; r += kLanes) {
    FloatVec maximum = hn::LoadU(d, maxima + r);
    for (std::size_t key = 0; key < tile.keys; ++key) {
      maximum = hn::Max(maximum, hn::LoadU(d, tile.scores + key * kTileRows + r));
    }
    hn::StoreU(maximum, d, maxima + r);
  }
}

inline void exponentiate(const ScoreTile& tile, const float* maxima) {
  const Floats d;
  for (std::size_t r = 0; r < kTileRows; r += kLanes) {
    const FloatVec maximum = hn::LoadU(d, maxima + r);
    // A row that sees no key has maximum −inf; subtracting 0 instead keeps −inf − −inf out.
    const FloatVec base = hn::IfThenElse(hn::Eq(maximum, hn::Set(d, kMinusInfinity)), hn::Zero(d), maximum);
    for (std::size_t key = 0; key < tile.keys; ++key) {
      float* score = tile.scores + key * kTileRows + r;
      hn::StoreU(exp_of(hn::Sub(hn::LoadU(d, score), base)), d, score);
    }
  }
}

// sums[r] += Σ over keys of Fixed p = weight · factors[r] / 2^40, or of the weights themselves where factors
// are null.
inline void add_row_sums(const ScoreTile& tile, const double* factors, Fixed* sums) {
  const Doubles d;
  const Integers di;
  const IntegerVec bias = hn::Set(di, static_cast<Fixed>(tile.keys * kFixedBiasBits));
  for (std::size_t r = 0; r < kTileRows; r += kWideLanes) {
    const DoubleVec factor = factors == nullptr ? hn::Set(d, kFixedOne) : hn::LoadU(d, factors + r);
    IntegerVec sum = hn::Sub(hn::LoadU(di, sums + r), bias);
    for (std::size_t key = 0; key < tile.keys; ++key) {
      const float* weights = tile.scores + key * kTileRows + r;
      sum = hn::Add(sum, hn::BitCast(di, biased_probability<DType::kF32>(weights, factor)));
    }
    hn::StoreU(sum, di, sums + r);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace tessera
HWY_AFTER_NAMESPACE();

#endif
