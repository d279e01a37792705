// Counter-based random numbers: a value is a pure function of (seed, stream, counter), so that every grid,
// machine and library draws the same. Nothing here uses <random>, whose distributions differ by library.
#pragma once

#include <cstdint>
#include <string_view>

namespace tessera {

// SplitMix64's finaliser (Steele, Lea, Flood 2014): a bijection of 64-bit integers with full avalanche.
constexpr std::uint64_t mix_bits(std::uint64_t value) {
  value ^= value >> 30;
  value *= 0xbf58476d1ce4e5b9ULL;
  value ^= value >> 27;
  value *= 0x94d049bb133111ebULL;
  return value ^ (value >> 31);
}

constexpr std::uint64_t hash_counter(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter) {
  const std::uint64_t key =
      mix_bits(seed + 0x9e3779b97f4a7c15ULL) ^ mix_bits(stream * 0xd1342543de82ef95ULL + 1);
  return mix_bits(key + (counter + 1) * 0x9e3779b97f4a7c15ULL);
}

// FNV-1a: a stream number from a name ("model.norm.weight", "ruler_niah").
constexpr std::uint64_t stream_of(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  return hash;
}

// A sequence of draws from one (seed, stream).
class CounterRng {
 public:
  CounterRng(std::uint64_t seed, std::uint64_t stream) : seed_(seed), stream_(stream) {}

  std::uint64_t next() { return hash_counter(seed_, stream_, counter_++); }

  // Uniform in [0, bound), without bias (Lemire 2019). bound > 0.
  std::uint64_t below(std::uint64_t bound) {
    Wide product = static_cast<Wide>(next()) * bound;
    if (static_cast<std::uint64_t>(product) < bound) {
      const std::uint64_t threshold = (0 - bound) % bound;
      while (static_cast<std::uint64_t>(product) < threshold) {
        product = static_cast<Wide>(next()) * bound;
      }
    }
    return static_cast<std::uint64_t>(product >> 64);
  }

  // Uniform in [0, 1), 53 bits.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

 private:
  using Wide = unsigned __int128;

  std::uint64_t seed_;
  std::uint64_t stream_;
  std::uint64_t counter_ = 0;
};

}  // namespace tessera
