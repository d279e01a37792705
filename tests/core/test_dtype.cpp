#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "runtime/core/dtype.hpp"

using namespace tessera;

namespace {

// IEEE 754 from its definition: sign · 2^(exponent − bias) · 1.mantissa.
double value_of_bits(std::uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = (bits >> (exponent_bits + mantissa_bits)) & 1 ? -1.0 : 1.0;
  const int exponent = static_cast<int>((bits >> mantissa_bits) & ((1u << exponent_bits) - 1));
  const double fraction = std::ldexp(static_cast<double>(bits & ((1u << mantissa_bits) - 1)), -mantissa_bits);
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias);
  return sign * std::ldexp(1.0 + fraction, exponent - bias);
}

bool same(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

std::uint16_t narrow(float value, DType dtype, int at) {
  std::vector<float> source(37, 1.0f);  // at: in the vector part or in the tail
  source[static_cast<std::size_t>(at)] = value;
  std::vector<std::uint16_t> target(37);
  convert_from_float(source.data(), dtype, target.data(), target.size());
  return target[static_cast<std::size_t>(at)];
}

}  // namespace

TEST_CASE("every 16-bit value widens to what its bits say and narrows back to itself") {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const int exponent_bits = dtype == DType::kBF16 ? 8 : 5;
    std::vector<std::uint16_t> bits(65536);
    for (std::uint32_t i = 0; i < 65536; ++i) bits[i] = static_cast<std::uint16_t>(i);
    // One byte off, since checkpoints need not be aligned.
    std::vector<std::byte> shifted(65536 * 2 + 1);
    std::memcpy(shifted.data() + 1, bits.data(), 65536 * 2);
    std::vector<float> floats(65536, -7.0f);
    convert_to_float(shifted.data() + 1, dtype, floats.data(), floats.size());
    std::vector<std::byte> back(65536 * 2 + 1);
    convert_from_float(floats.data(), dtype, back.data() + 1, floats.size());
    int wrong = 0;
    for (std::uint32_t i = 0; i < 65536; ++i) {
      const double want = value_of_bits(i, exponent_bits, 15 - exponent_bits);
      const float scalar = dtype == DType::kBF16 ? to_float(BFloat16{bits[i]}) : to_float(Float16{bits[i]});
      std::uint16_t again;
      std::memcpy(&again, back.data() + 1 + 2 * i, 2);
      const double round_trip = value_of_bits(again, exponent_bits, 15 - exponent_bits);
      if (!same(floats[i], want) || !same(scalar, want) || !same(round_trip, want)) ++wrong;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("narrowing rounds to nearest, ties to even") {
  // Between every two neighbours: just below the middle, the middle, just above it.
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const int exponent_bits = dtype == DType::kBF16 ? 8 : 5;
    const int mantissa_bits = 15 - exponent_bits;
    const std::uint32_t infinity = ((1u << exponent_bits) - 1) << mantissa_bits;
    std::vector<float> source;
    std::vector<std::uint16_t> want;
    for (std::uint32_t low = 0; low + 1 < infinity; ++low) {
      const double a = value_of_bits(low, exponent_bits, mantissa_bits);
      const double b = value_of_bits(low + 1, exponent_bits, mantissa_bits);
      const float middle = static_cast<float>((a + b) / 2);  // exact, or 2^-150 of bf16's smallest: skipped
      if (middle != (a + b) / 2) continue;
      const std::uint32_t even = low % 2 == 0 ? low : low + 1;
      for (const auto& [value, bits] :
           {std::pair{std::nextafter(middle, 0.0f), low}, std::pair{middle, even},
            std::pair{std::nextafter(middle, std::numeric_limits<float>::infinity()), low + 1}}) {
        source.push_back(value);
        want.push_back(static_cast<std::uint16_t>(bits));
        source.push_back(-value);
        want.push_back(static_cast<std::uint16_t>(bits | 0x8000u));
      }
    }
    REQUIRE(source.size() > 100000);
    std::vector<std::uint16_t> got(source.size());
    convert_from_float(source.data(), dtype, got.data(), got.size());
    CHECK(got == want);
    int scalar_wrong = 0;
    for (std::size_t i = 0; i < source.size(); ++i) {
      const std::uint16_t bits =
          dtype == DType::kBF16 ? to_bfloat16(source[i]).bits : to_float16(source[i]).bits;
      if (bits != want[i]) ++scalar_wrong;
    }
    CHECK(scalar_wrong == 0);
  }
}

TEST_CASE("narrowing keeps infinities, overflows to them, and keeps NaN a NaN") {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const int at : {3, 36}) {
    CHECK(narrow(infinity, DType::kBF16, at) == 0x7f80);
    CHECK(narrow(-infinity, DType::kF16, at) == 0xfc00);
    CHECK(narrow(std::numeric_limits<float>::max(), DType::kBF16, at) == 0x7f80);
    CHECK(narrow(65504.0f, DType::kF16, at) == 0x7bff);
    CHECK(narrow(65519.996f, DType::kF16, at) == 0x7bff);
    CHECK(narrow(65520.0f, DType::kF16, at) == 0x7c00);
    for (const std::uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu, 0x7fc00000u}) {
      const float nan = std::bit_cast<float>(bits);
      CHECK((narrow(nan, DType::kBF16, at) & 0x7fff) > 0x7f80);
      CHECK((narrow(nan, DType::kF16, at) & 0x7fff) > 0x7c00);
    }
  }
}

TEST_CASE("nothing is written past the end, and nothing for no elements") {
  std::vector<std::uint16_t> target(20, 0xabcd);
  const std::vector<float> source(20, 2.0f);
  convert_from_float(source.data(), DType::kBF16, target.data(), 19);
  CHECK(target[18] == 0x4000);
  CHECK(target[19] == 0xabcd);
  convert_from_float(nullptr, DType::kF32, nullptr, 0);
  convert_to_float(nullptr, DType::kBF16, nullptr, 0);
  std::vector<float> floats(20, -1.0f);
  convert_to_float(target.data(), DType::kBF16, floats.data(), 19);
  CHECK(floats[18] == 2.0f);
  CHECK(floats[19] == -1.0f);
}
