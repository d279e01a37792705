// Merging of partial softmaxes against fp64, with empty partials whose outputs are poisoned.
#include "parallel/merge.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "runtime/core/random.hpp"

using namespace tessera;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Partials {
  std::int64_t rows;
  int head_dim;
  std::vector<std::vector<float>> outs, lses;

  MergeParams params(std::vector<const float*>& out_pointers, std::vector<const float*>& lse_pointers,
                     float* out, float* lse) const {
    for (std::size_t r = 0; r < outs.size(); ++r) {
      out_pointers.push_back(outs[r].data());
      lse_pointers.push_back(lses[r].data());
    }
    return {static_cast<int>(outs.size()), rows, head_dim, out_pointers.data(),
            lse_pointers.data(),           out,  lse};
  }
};

// Each (partial, row) is empty with probability `empty`; empty ones hold NaN.
Partials draw(int partials, std::int64_t rows, int head_dim, double empty, std::uint64_t seed) {
  Partials drawn{rows, head_dim, {}, {}};
  CounterRng rng(seed, stream_of("merge"));
  for (int r = 0; r < partials; ++r) {
    std::vector<float> out, lse;
    for (std::int64_t row = 0; row < rows; ++row) {
      const bool is_empty = rng.uniform() < empty;
      // Wide enough that exp(lse) itself would overflow.
      lse.push_back(
          is_empty ? -kInf : static_cast<float>(rng.uniform() * 8 + static_cast<double>(row % 3 - 1) * 200));
      for (int d = 0; d < head_dim; ++d)
        out.push_back(is_empty ? kNan : static_cast<float>(rng.uniform() * 2 - 1));
    }
    drawn.outs.push_back(out);
    drawn.lses.push_back(lse);
  }
  return drawn;
}

void check_against_fp64(const Partials& in, const std::vector<float>& out, const std::vector<float>& lse) {
  double worst_out = 0, worst_lse = 0;
  for (std::int64_t row = 0; row < in.rows; ++row) {
    const auto i = static_cast<std::size_t>(row);
    const auto D = static_cast<std::size_t>(in.head_dim);
    double top = -std::numeric_limits<double>::infinity();
    for (const auto& l : in.lses) top = std::max(top, static_cast<double>(l[i]));
    if (std::isinf(top)) {
      CHECK(lse[i] == -kInf);
      for (std::size_t d = 0; d < D; ++d) CHECK(out[i * D + d] == 0.0f);
      continue;
    }
    double sum = 0;
    for (const auto& l : in.lses) sum += std::exp(static_cast<double>(l[i]) - top);
    worst_lse = std::max(worst_lse, std::abs(lse[i] - (top + std::log(sum))) / std::max(1.0, std::abs(top)));
    for (std::size_t d = 0; d < D; ++d) {
      double expected = 0;
      for (std::size_t r = 0; r < in.outs.size(); ++r) {
        if (std::isinf(in.lses[r][i])) continue;
        expected += std::exp(static_cast<double>(in.lses[r][i]) - top) / sum * in.outs[r][i * D + d];
      }
      const double error = std::abs(out[i * D + d] - expected);
      worst_out = std::isnan(error) ? kInf : std::max(worst_out, error);
    }
  }
  CHECK(worst_lse < 1e-6);
  CHECK(worst_out < 3e-5);  // the rounding of lse near 200 (1.5e-5) enters the weights
}

}  // namespace

TEST_CASE("merge equals fp64 with empty partials") {
  for (const int partials : {1, 2, 3, 5, 8}) {
    for (const int head_dim : {1, 3, 64, 128}) {
      for (const double empty : {0.0, 0.4, 1.0}) {
        for (const std::int64_t rows : {0, 1, 7, 130}) {
          const Partials in = draw(partials, rows, head_dim, empty, static_cast<std::uint64_t>(partials));
          std::vector<float> out(static_cast<std::size_t>(rows * head_dim), kNan),
              lse(static_cast<std::size_t>(rows), kNan);
          std::vector<const float*> outs, lses;
          merge_partials(in.params(outs, lses, out.data(), lse.data()));
          check_against_fp64(in, out, lse);

          // In place over the first partial: the same bits.
          Partials in_place = in;
          std::vector<const float*> outs2, lses2;
          merge_partials(in_place.params(outs2, lses2, in_place.outs[0].data(), in_place.lses[0].data()));
          CHECK((rows == 0 || std::memcmp(in_place.outs[0].data(), out.data(), out.size() * 4) == 0));
          CHECK((rows == 0 || std::memcmp(in_place.lses[0].data(), lse.data(), lse.size() * 4) == 0));
        }
      }
    }
  }
}

TEST_CASE("an empty partial changes no bit, wherever it stands") {
  const Partials in = draw(3, 50, 16, 0.2, 9);
  std::vector<float> out(800), lse(50), with(800), with_lse(50);
  std::vector<const float*> outs, lses;
  merge_partials(in.params(outs, lses, out.data(), lse.data()));
  const Partials nothing = draw(1, 50, 16, 1.0, 10);
  for (std::size_t at = 0; at <= 3; ++at) {
    auto more_outs = outs, more_lses = lses;
    more_outs.insert(more_outs.begin() + static_cast<std::ptrdiff_t>(at), nothing.outs[0].data());
    more_lses.insert(more_lses.begin() + static_cast<std::ptrdiff_t>(at), nothing.lses[0].data());
    merge_partials({4, 50, 16, more_outs.data(), more_lses.data(), with.data(), with_lse.data()});
    CHECK(std::memcmp(with.data(), out.data(), 800 * 4) == 0);
    CHECK(std::memcmp(with_lse.data(), lse.data(), 50 * 4) == 0);
  }
}

TEST_CASE("a lone partial passes through bit by bit, without asking for lse") {
  const Partials in = draw(1, 600, 128, 0.0, 11);  // long enough for the threaded path
  std::vector<float> out(600 * 128);
  std::vector<const float*> outs, lses;
  merge_partials(in.params(outs, lses, out.data(), nullptr));
  CHECK(out == in.outs[0]);
}

TEST_CASE("a NaN is not taken for an empty partial") {
  Partials in = draw(2, 1, 4, 0.0, 12);
  in.lses[1][0] = kNan;
  float out[4] = {}, lse = 0;
  std::vector<const float*> outs, lses;
  merge_partials(in.params(outs, lses, out, &lse));
  CHECK(std::isnan(lse));
  CHECK(std::isnan(out[0]));
}
