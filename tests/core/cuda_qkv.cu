#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>

#include "runtime/core/device_ops.hpp"
#include "runtime/core/tensor.hpp"
#include "tests/cuda_support.hpp"
#include "tests/reference/naive_ops.hpp"

using namespace tessera;
using namespace tessera::cuda;
using namespace cuda_test;

namespace {

constexpr int kSlots = 96;
constexpr int kMostPositions = 600;
constexpr int kTableStride = kMostPositions / kBlockTokens + 3;

struct Case {
  int heads, kv_heads, head_dim;
  DType dtype;
  bool bias, norm;
  float offset;
  bool bounds;
  int sequences = 1;
};

// A paged cache on host and device, with its slots in random order, and the appends of a test.
class Cache {
 public:
  Cache(const Case& shape, std::uint64_t seed) : c_(shape), rng_(seed) {
    const auto half = static_cast<std::size_t>(c_.head_dim / 2);
    angles_.resize(kMostPositions * half);
    for (std::size_t i = 0; i < angles_.size(); ++i) {
      angles_[i] = static_cast<double>(i / half) * std::pow(1e4, -static_cast<double>(i % half) / half);
    }
    std::vector<float> cosines, sines;
    for (const double angle : angles_) {
      cosines.push_back(static_cast<float>(std::cos(angle)));
      sines.push_back(static_cast<float>(std::sin(angle)));
    }
    cosines_ = gpu_.upload(cosines), sines_ = gpu_.upload(sines);
    std::vector<std::int32_t> order(kSlots);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), rng_);
    table_.assign(static_cast<std::size_t>(c_.sequences * c_.kv_heads * kTableStride), -1);
    free_ = order;
    slot_elements_ = static_cast<std::size_t>(2 * kBlockTokens * c_.head_dim);
    slots_ = gpu_.poisoned(kSlots * slot_elements_ * 2);
    bounds_ = gpu_.poisoned(kSlots * 4 * 2 * static_cast<std::size_t>(c_.head_dim) * 2);
    want_.assign(kSlots * slot_elements_, NAN);
    allowed_.assign(kSlots * slot_elements_, 0);
    bias_ = draw(static_cast<std::size_t>((c_.heads + 2 * c_.kv_heads) * c_.head_dim));
    norms_ = draw(static_cast<std::size_t>(2 * c_.head_dim));
  }

  // sequences: of each token, or empty. rows: packed rows of each head before, or empty.
  void append(const std::vector<std::int32_t>& positions, const std::vector<std::int32_t>& sequences = {},
              const std::vector<std::int64_t>& rows = {}) {
    const std::size_t tokens = positions.size();
    const int lists = c_.heads + 2 * c_.kv_heads;
    const std::size_t D = static_cast<std::size_t>(c_.head_dim);
    const std::size_t columns = static_cast<std::size_t>(lists) * D, stride = columns + 8;
    const std::vector<float> in = draw(tokens * stride);
    for (std::size_t t = 0; t < tokens; ++t) {
      if (positions[t] < 0) continue;
      const int sequence = sequences.empty() ? 0 : sequences[t];
      for (int k = 0; k < c_.kv_heads; ++k) {
        std::int64_t row = positions[t];
        if (!rows.empty()) {
          row = rows[static_cast<std::size_t>(sequence * c_.kv_heads + k)] +
                (sequences.empty() ? static_cast<std::int64_t>(t) : 0);
        }
        std::int32_t& slot = table_[table_index(sequence, k, row)];
        if (slot < 0) slot = free_.back(), free_.pop_back();
        const std::size_t at = static_cast<std::size_t>(slot) * slot_elements_ +
                               static_cast<std::size_t>(row % kBlockTokens) * D;
        const std::size_t column = static_cast<std::size_t>(c_.heads + k) * D;
        const std::vector<double> key =
            turned(in, t * stride, column, positions[t], c_.norm ? norms_.data() + D : nullptr);
        for (std::size_t d = 0; d < D; ++d) {
          want_[at + d] = key[d];
          allowed_[at + d] = allowed_of(key[d]);
          const std::size_t v = column + static_cast<std::size_t>(c_.kv_heads) * D + d;
          const double value = double{in[t * stride + v]} + (c_.bias ? bias_[v] : 0.0);
          want_[at + slot_elements_ / 2 + d] = value;
          allowed_[at + slot_elements_ / 2 + d] = allowed_of(value);
        }
      }
    }
    DeviceBuffer there = gpu_.upload(rounded(in, c_.dtype)), bias = gpu_.upload(rounded(bias_, c_.dtype));
    DeviceBuffer norms = gpu_.upload(rounded(norms_, c_.dtype)), positions_there = gpu_.upload(positions);
    DeviceBuffer table = gpu_.upload(table_), sequences_there = gpu_.upload(sequences);
    DeviceBuffer rows_there = gpu_.upload(rows);
    const std::size_t out_stride = static_cast<std::size_t>(c_.heads) * D + 16;
    DeviceBuffer q_out = gpu_.poisoned(tokens * out_stride * 2);
    const auto column = [&](DeviceBuffer& buffer, int list) {
      return buffer.as<std::uint16_t>() + static_cast<std::size_t>(list) * D;
    };
    QkvParams p;
    p.tokens = static_cast<std::int64_t>(tokens);
    p.heads = c_.heads, p.kv_heads = c_.kv_heads, p.head_dim = c_.head_dim, p.dtype = c_.dtype;
    p.q = there.data(), p.k = column(there, c_.heads), p.v = column(there, c_.heads + c_.kv_heads);
    p.q_stride = p.kv_stride = static_cast<std::int64_t>(stride);
    if (c_.bias) {
      p.q_bias = bias.data(), p.k_bias = column(bias, c_.heads),
      p.v_bias = column(bias, c_.heads + c_.kv_heads);
    }
    if (c_.norm) p.q_norm = norms.data(), p.k_norm = column(norms, 1);
    p.norm_offset = c_.offset, p.norm_eps = 1e-6f;
    p.positions = positions_there.as<std::int32_t>();
    p.cosines = cosines_.as<float>(), p.sines = sines_.as<float>();
    p.q_out = q_out.data(), p.q_out_stride = static_cast<std::int64_t>(out_stride);
    p.slots = slots_.data(), p.slot_bytes = slot_elements_ * 2;
    p.table = table.as<std::int32_t>(), p.table_stride = kTableStride;
    p.sequences = sequences.empty() ? nullptr : sequences_there.as<std::int32_t>();
    p.table_sequence_stride = std::int64_t{c_.kv_heads} * kTableStride;
    p.rows_of_head = rows.empty() ? nullptr : rows_there.as<std::int64_t>();
    p.bounds = c_.bounds ? bounds_.data() : nullptr;
    p.stream = gpu_.stream();
    qkv_to_cache(p);
    check_queries(in, stride, positions, gpu_.download<std::uint16_t>(q_out), out_stride);
    check_slots();
    if (c_.bounds) check_bounds();
  }

 private:
  std::vector<float> draw(std::size_t count) {
    return widened(rounded(random_floats(count, rng_, -2, 2), c_.dtype), c_.dtype);
  }
  std::size_t table_index(int sequence, int head, std::int64_t row) const {
    return static_cast<std::size_t>((sequence * c_.kv_heads + head) * kTableStride + row / kBlockTokens);
  }
  double allowed_of(double value) const {
    return unit_of(c_.dtype) * 1.001 * std::fabs(value) + (c_.dtype == DType::kF16 ? 0x1p-25 : 0) + 1e-5;
  }

  std::vector<double> turned(const std::vector<float>& in, std::size_t row, std::size_t column,
                             std::int32_t position, const float* norm) const {
    const std::size_t D = static_cast<std::size_t>(c_.head_dim), half = D / 2;
    std::vector<double> x(D), y(D);
    double squares = 0;
    for (std::size_t d = 0; d < D; ++d) {
      x[d] = double{in[row + column + d]} + (c_.bias ? bias_[column + d] : 0.0);
      squares += x[d] * x[d];
    }
    if (norm != nullptr) {
      for (std::size_t d = 0; d < D; ++d) {
        x[d] = x[d] / std::sqrt(squares / static_cast<double>(D) + 1e-6) * (double{norm[d]} + c_.offset);
      }
    }
    for (std::size_t i = 0; i < half; ++i) {
      const double angle = angles_[static_cast<std::size_t>(position) * half + i];
      y[i] = x[i] * std::cos(angle) - x[i + half] * std::sin(angle);
      y[i + half] = x[i + half] * std::cos(angle) + x[i] * std::sin(angle);
    }
    return y;
  }

  void check_queries(const std::vector<float>& in, std::size_t stride,
                     const std::vector<std::int32_t>& positions, const std::vector<std::uint16_t>& got,
                     std::size_t out_stride) {
    const std::size_t D = static_cast<std::size_t>(c_.head_dim);
    double worst = 0;
    bool untouched = true;
    for (std::size_t t = 0; t < positions.size(); ++t) {
      for (std::size_t c = static_cast<std::size_t>(c_.heads) * D; c < out_stride; ++c) {
        untouched &= got[t * out_stride + c] == kPoison16;
      }
      for (std::size_t h = 0; h < static_cast<std::size_t>(c_.heads); ++h) {
        if (positions[t] < 0) {
          untouched &= got[t * out_stride + h * D] == kPoison16;
          continue;
        }
        const std::vector<double> want =
            turned(in, t * stride, h * D, positions[t], c_.norm ? norms_.data() : nullptr);
        for (std::size_t d = 0; d < D; ++d) {
          const double error = std::fabs(value_of(got[t * out_stride + h * D + d], c_.dtype) - want[d]);
          const double ratio = error / allowed_of(want[d]);
          if (!(ratio <= worst)) worst = std::isnan(ratio) ? INFINITY : ratio;
        }
      }
    }
    CHECK(worst <= 1);
    CHECK(untouched);
  }

  void check_slots() {
    got_ = gpu_.download<std::uint16_t>(slots_);
    double worst = 0;
    bool untouched = true;
    for (std::size_t i = 0; i < got_.size(); ++i) {
      if (std::isnan(want_[i])) {
        untouched &= got_[i] == kPoison16;
        continue;
      }
      const double ratio = std::fabs(value_of(got_[i], c_.dtype) - want_[i]) / allowed_[i];
      if (!(ratio <= worst)) worst = std::isnan(ratio) ? INFINITY : ratio;
    }
    CHECK(worst <= 1);
    CHECK(untouched);
  }

  // Bounds are those of the keys as stored, to the bit; pages without keys have none.
  void check_bounds() {
    const std::vector<std::uint16_t> got = gpu_.download<std::uint16_t>(bounds_);
    const std::size_t D = static_cast<std::size_t>(c_.head_dim);
    bool exact = true;
    for (std::size_t slot = 0; slot < kSlots; ++slot) {
      for (std::size_t page = 0; page < 4; ++page) {
        for (std::size_t d = 0; d < D; ++d) {
          float low = NAN, high = NAN;
          for (std::size_t row = page * 16; row < page * 16 + 16; ++row) {
            const std::size_t at = slot * slot_elements_ + row * D + d;
            if (got_[at] == kPoison16) continue;
            const float key = value_of(got_[at], c_.dtype);
            low = key < low || std::isnan(low) ? key : low;
            high = key > high || std::isnan(high) ? key : high;
          }
          const std::size_t at = ((slot * 4 + page) * 2) * D + d;
          const std::uint16_t want_low = std::isnan(low) ? kPoison16 : bits_of(low, c_.dtype);
          const std::uint16_t want_high = std::isnan(high) ? kPoison16 : bits_of(high, c_.dtype);
          exact &= got[at] == want_low && got[at + D] == want_high;
        }
      }
    }
    CHECK(exact);
  }

  Case c_;
  Gpu gpu_;
  std::mt19937_64 rng_;
  std::size_t slot_elements_ = 0;
  std::vector<double> angles_, want_, allowed_;
  std::vector<float> bias_, norms_;
  std::vector<std::int32_t> table_, free_;
  std::vector<std::uint16_t> got_;
  DeviceBuffer cosines_, sines_, slots_, bounds_;
};

std::vector<std::int32_t> from_to(std::int32_t first, std::int32_t last) {
  std::vector<std::int32_t> positions(static_cast<std::size_t>(last - first));
  std::iota(positions.begin(), positions.end(), first);
  return positions;
}

constexpr Case kCases[] = {
    {28, 4, 128, DType::kBF16, true, false, 0, true},  {8, 4, 256, DType::kBF16, false, true, 1, true},
    {14, 2, 64, DType::kBF16, true, false, 0, true},   {5, 3, 128, DType::kF16, true, true, 0, true},
    {1, 1, 64, DType::kF16, false, false, 0, false},   {9, 1, 256, DType::kF16, true, true, 1, true},
    {64, 8, 128, DType::kBF16, false, false, 0, false}};

}  // namespace

TEST_CASE("q, k and v: bias, head norm, rope, append and page bounds") {
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  for (const Case& c : kCases) {
    CAPTURE(c.heads);
    CAPTURE(c.kv_heads);
    CAPTURE(c.head_dim);
    CAPTURE(c.bounds);
    Cache cache(c, seed);
    cache.append({});
    cache.append(from_to(0, 37));  // a prompt, then chunks that begin inside a page
    cache.append(from_to(37, 38));
    cache.append(from_to(38, 48));
    cache.append(from_to(48, 205));
    cache.append(from_to(205, 206));
    std::vector<std::int32_t> shard = from_to(256, 384);  // a rank's two pieces of a sequence
    const std::vector<std::int32_t> rest = from_to(512, 599);
    shard.insert(shard.end(), rest.begin(), rest.end());
    cache.append(shard);
  }
}

TEST_CASE("a step of decoding many sequences, with padding") {
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  for (Case c : kCases) {
    if (c.kv_heads > 4) continue;
    c.sequences = 5;
    CAPTURE(c.heads);
    CAPTURE(c.kv_heads);
    CAPTURE(c.head_dim);
    Cache cache(c, seed);
    std::vector<std::int32_t> positions = {0, 64, 16, 128, 320};
    for (int step = 0; step < 18; ++step) {
      std::vector<std::int32_t> padded = positions;
      padded.push_back(-1);
      cache.append(padded, {3, 1, 0, 2, 4, 0});
      for (std::int32_t& position : positions) ++position;
    }
  }
}

TEST_CASE("rows that eviction packed: each head has its own count") {
  const std::uint64_t seed = fresh_seed();
  CAPTURE(seed);
  for (Case c : kCases) {
    if (c.kv_heads > 4) continue;
    c.bounds = false;
    Cache cache(c, seed);
    std::vector<std::int64_t> rows;
    for (int k = 0; k < c.kv_heads; ++k) rows.push_back(60 + 7 * k);
    cache.append(from_to(500, 530), {}, rows);

    c.sequences = 2;
    Cache batch(c, seed);
    for (int k = 0; k < c.kv_heads; ++k) rows.push_back(5 * k);
    batch.append({300, 400}, {1, 0}, rows);
  }
}
