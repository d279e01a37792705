// Problems for the prefill kernel: a paged cache in random slots with poison wherever nothing was written,
// the kernel run on it, and a naive fp64 answer for the rows asked for.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "attention/prefill_cuda.hpp"
#include "tests/cuda_support.hpp"

namespace cuda_test {

struct PrefillCase {
  std::int64_t tokens = 0;  // T
  std::int64_t length = 0;  // S
  int heads = 1;            // H
  int kv_heads = 1;         // K
  int head_dim = 128;       // D
  tessera::DType dtype = tessera::DType::kBF16;
  std::vector<std::int32_t> starts = {0};  // first position of each shard; all but the last have `shard` rows
  std::int64_t shard = 1 << 30;            // a multiple of 64
  std::int32_t window = 0;
  std::int64_t q_padding = 0;  // elements between rows of Q beside the heads
  std::function<bool(int kv_head, std::int64_t block)> held = [](int, std::int64_t) { return true; };
  // Sparse: which keys below the diagonal a row sees, and which pages of held blocks hold keys at all.
  std::function<bool(int head, std::int64_t position, std::int64_t key)> sees =
      [](int, std::int64_t, std::int64_t) { return true; };
  std::function<bool(int kv_head, std::int64_t page)> filled = [](int, std::int64_t) { return true; };
  // Of pages that are not filled: which keys are there all the same.
  std::function<bool(int kv_head, std::int64_t key)> gathered = [](int, std::int64_t) { return false; };
  double score_spread = 1;  // standard deviation of scores, about
  bool growing = false;     // keys grow with position from the end, so that the running maximum moves
  bool with_lse = true;
  int tile_keys = 0;     // 0: what the kernel chooses
  int sampled_rows = 0;  // compare so many rows; 0: all
};

using PrefillRun = std::function<void(const tessera::cuda::PrefillParams&)>;

class PrefillProblem {
 public:
  PrefillProblem(Gpu& gpu, const PrefillCase& c, std::uint64_t seed) : gpu_(gpu), case_(c), rng_(seed) {
    draw();
    page();
  }

  tessera::cuda::PrefillParams params() {
    tessera::cuda::PrefillParams p;
    p.tokens = case_.tokens;
    p.heads = case_.heads;
    p.q = q_device_.data();
    p.q_row_stride = q_stride();
    p.block_positions = positions_device_.as<std::int32_t>();
    p.kv.slots = pool_device_.data();
    p.kv.slot_bytes = 4ULL * tessera::kBlockTokens * case_.head_dim;
    p.kv.dtype = case_.dtype;
    p.kv.kv_heads = case_.kv_heads;
    p.kv.head_dim = case_.head_dim;
    p.kv.blocks = blocks();
    p.kv.table_stride = table_stride();
    p.kv.table = table_device_.as<std::int32_t>();
    p.kv.length = case_.length;
    p.pool_slots = pool_slots_;
    p.scale = scale();
    p.window = case_.window;
    p.out = out_device_.data();
    p.lse = case_.with_lse ? lse_device_.as<float>() : nullptr;
    p.counters = counters_device_.as<std::uint32_t>();
    p.stream = gpu_.stream();
    p.tile_keys = case_.tile_keys;
    return p;
  }

  // Runs on poisoned outputs and compares with the naive answer.
  void check(const std::string& name, const PrefillRun& run = tessera::cuda::prefill_attention) {
    CAPTURE(name);
    const std::vector<std::uint16_t> out = answer(run);
    const std::vector<float> lse = gpu_.download<float>(lse_device_);
    const std::vector<std::int64_t> rows = rows_to_compare();
    compare(name, rows, out, lse);
    const std::vector<std::uint32_t> counters = gpu_.download<std::uint32_t>(counters_device_);
    CHECK(counters[0] == 0);
    CHECK(counters[1] == 0);
    if (rows.size() < static_cast<std::size_t>(case_.tokens)) {
      // The others hold numbers, at least.
      std::size_t not_numbers = 0;
      for (std::uint16_t bits : out) not_numbers += std::isfinite(value_of(bits, case_.dtype)) ? 0 : 1;
      CHECK(not_numbers == 0);
    }
  }

  std::vector<std::uint16_t> answer(const PrefillRun& run = tessera::cuda::prefill_attention) {
    out_device_ = gpu_.poisoned(static_cast<std::size_t>(case_.tokens) * case_.heads * case_.head_dim * 2);
    lse_device_ = gpu_.poisoned(static_cast<std::size_t>(case_.tokens) * case_.heads * 4);
    run(params());
    gpu_.synchronize();
    return gpu_.download<std::uint16_t>(out_device_);
  }

 private:
  std::int64_t blocks() const { return tessera::ceil_div(case_.length, tessera::kBlockTokens); }
  std::int64_t table_stride() const { return blocks() + 5; }
  std::int64_t q_stride() const {
    return static_cast<std::int64_t>(case_.heads) * case_.head_dim + case_.q_padding;
  }
  float scale() const { return 1.0F / std::sqrt(static_cast<float>(case_.head_dim)); }
  std::int64_t position(std::int64_t row) const {
    const std::int64_t shard = row / case_.shard;
    return case_.starts[static_cast<std::size_t>(shard)] + row - shard * case_.shard;
  }

  std::vector<float> normals(std::size_t count, double deviation) {
    std::normal_distribution<float> draw(0, static_cast<float>(deviation));
    std::vector<float> values(count);
    for (float& value : values) value = draw(rng_);
    return widened(rounded(values, case_.dtype), case_.dtype);
  }

  void draw() {
    const auto d = static_cast<std::size_t>(case_.head_dim);
    q_ = normals(static_cast<std::size_t>(case_.tokens) * case_.heads * d, case_.score_spread);
    k_ = normals(static_cast<std::size_t>(case_.length) * case_.kv_heads * d, 1);
    v_ = normals(static_cast<std::size_t>(case_.length) * case_.kv_heads * d, 1);
    if (case_.growing) {
      for (std::size_t i = 0; i < k_.size(); ++i) {
        const auto j = static_cast<double>(i / d % static_cast<std::size_t>(case_.length));
        k_[i] = static_cast<float>(k_[i] * (1.0 + 8.0 * (1.0 - j / static_cast<double>(case_.length))));
      }
      k_ = widened(rounded(k_, case_.dtype), case_.dtype);
    }
    std::vector<std::uint16_t> q_rows(static_cast<std::size_t>(case_.tokens * q_stride()), 0xFFFF);
    const std::size_t row = static_cast<std::size_t>(case_.heads) * d;
    for (std::int64_t t = 0; t < case_.tokens; ++t) {
      for (std::size_t i = 0; i < row; ++i) {
        q_rows[static_cast<std::size_t>(t * q_stride()) + i] =
            bits_of(q_[static_cast<std::size_t>(t) * row + i], case_.dtype);
      }
    }
    q_device_ = gpu_.upload(q_rows);
    std::vector<std::int32_t> first;
    for (std::int64_t t = 0; t < case_.tokens; t += tessera::kQueryBlockRows) {
      first.push_back(static_cast<std::int32_t>(position(t)));
    }
    positions_device_ = gpu_.upload(first);
    counters_device_ = gpu_.upload(std::vector<std::uint32_t>{0, 0});
  }

  // k_ and v_ (K, S, D) into random slots; whatever holds no key is NaN.
  void page() {
    const auto d = static_cast<std::int64_t>(case_.head_dim);
    const std::int64_t half = tessera::kBlockTokens * d;
    pool_slots_ = std::max<std::int64_t>(1, blocks() * case_.kv_heads) + 7;
    std::vector<std::int32_t> order(static_cast<std::size_t>(pool_slots_));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), rng_);
    std::vector<std::uint16_t> pool(static_cast<std::size_t>(pool_slots_ * 2 * half), 0xFFFF);
    std::vector<std::int32_t> table(static_cast<std::size_t>(case_.kv_heads * table_stride()),
                                    tessera::kNoSlot);
    std::size_t taken = 0;
    for (int head = 0; head < case_.kv_heads; ++head) {
      for (std::int64_t block = 0; block < blocks(); ++block) {
        if (!case_.held(head, block)) continue;
        const std::int32_t slot = order[taken++];
        table[static_cast<std::size_t>(head * table_stride() + block)] = slot;
        const std::int64_t rows = std::min<std::int64_t>(64, case_.length - block * 64);
        const std::int64_t from = (head * case_.length + block * 64) * d;
        for (std::int64_t i = 0; i < rows * d; ++i) {
          if (!case_.filled(head, block * 4 + i / d / tessera::kPageTokens) &&
              !case_.gathered(head, block * 64 + i / d)) {
            continue;
          }
          pool[static_cast<std::size_t>(slot * 2 * half + i)] =
              bits_of(k_[static_cast<std::size_t>(from + i)], case_.dtype);
          pool[static_cast<std::size_t>((slot * 2 + 1) * half + i)] =
              bits_of(v_[static_cast<std::size_t>(from + i)], case_.dtype);
        }
      }
    }
    pool_device_ = gpu_.upload(pool);
    table_device_ = gpu_.upload(table);
  }

  std::vector<std::int64_t> rows_to_compare() {
    std::vector<std::int64_t> rows(static_cast<std::size_t>(case_.tokens));
    std::iota(rows.begin(), rows.end(), std::int64_t{0});
    if (case_.sampled_rows == 0 || case_.sampled_rows >= case_.tokens) return rows;
    std::shuffle(rows.begin() + 1, rows.end() - 1, rng_);
    rows[1] = case_.tokens - 1;
    rows.resize(static_cast<std::size_t>(case_.sampled_rows));
    return rows;
  }

  struct NaiveRow {
    std::vector<double> out;  // (D)
    double magnitude = 0;     // largest over channels of the weighted mean of |v|
    double lse = -std::numeric_limits<double>::infinity();
    std::int64_t keys = 0;
  };

  NaiveRow naive(std::int64_t row, int head) const {
    const auto d = static_cast<std::size_t>(case_.head_dim);
    const int kv_head = head / (case_.heads / case_.kv_heads);
    NaiveRow result;
    result.out.assign(d, 0);
    std::vector<double> magnitude(d, 0);
    const float* q = q_.data() + (static_cast<std::size_t>(row) * case_.heads + head) * d;
    const std::int64_t pos = position(row);
    std::vector<double> scores;
    std::vector<std::int64_t> keys;
    for (std::int64_t j = 0; j < case_.length && j <= pos; ++j) {
      if (case_.window != 0 && j <= pos - case_.window) continue;
      if (!case_.held(kv_head, j / 64) || !case_.sees(head, pos, j)) continue;
      const float* k = k_.data() + static_cast<std::size_t>(kv_head * case_.length + j) * d;
      double parts[8] = {};
      for (std::size_t i = 0; i < d; ++i)
        parts[i % 8] += static_cast<double>(q[i]) * static_cast<double>(k[i]);
      double score = 0;
      for (double part : parts) score += part;
      scores.push_back(score * static_cast<double>(scale()));
      keys.push_back(j);
    }
    result.keys = static_cast<std::int64_t>(keys.size());
    if (keys.empty()) return result;
    const double top = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (double score : scores) sum += std::exp(score - top);
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const double weight = std::exp(scores[i] - top) / sum;
      const float* v = v_.data() + static_cast<std::size_t>(kv_head * case_.length + keys[i]) * d;
      for (std::size_t c = 0; c < d; ++c) {
        result.out[c] += weight * static_cast<double>(v[c]);
        magnitude[c] += weight * std::fabs(static_cast<double>(v[c]));
      }
    }
    result.magnitude = *std::max_element(magnitude.begin(), magnitude.end());
    result.lse = top + std::log(sum);
    return result;
  }

  void compare(const std::string& name, const std::vector<std::int64_t>& rows,
               const std::vector<std::uint16_t>& out, const std::vector<float>& lse) {
    const std::size_t pairs = rows.size() * static_cast<std::size_t>(case_.heads);
    std::vector<NaiveRow> expected(pairs);
    std::vector<std::thread> threads;
    const std::size_t workers = std::max(1U, std::thread::hardware_concurrency());
    for (std::size_t w = 0; w < workers; ++w) {
      threads.emplace_back([&, w] {
        for (std::size_t i = w; i < pairs; i += workers) {
          expected[i] = naive(rows[i / static_cast<std::size_t>(case_.heads)],
                              static_cast<int>(i % static_cast<std::size_t>(case_.heads)));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();

    // Probabilities and outputs are rounded to the type, once each; fp16 also loses weights under 2^-24.
    const double unit = case_.dtype == tessera::DType::kBF16 ? 0x1p-7 : 0x1p-10;
    const double lost = case_.dtype == tessera::DType::kBF16 ? 0 : 0x1p-24;
    double error2 = 0;
    double norm2 = 0;
    double worst_lse = 0;
    std::size_t bad_out = 0;
    std::size_t bad_lse = 0;
    std::int64_t bad_row = -1;
    for (std::size_t i = 0; i < pairs; ++i) {
      const std::size_t at =
          static_cast<std::size_t>(rows[i / static_cast<std::size_t>(case_.heads)]) * case_.heads +
          i % static_cast<std::size_t>(case_.heads);
      const NaiveRow& e = expected[i];
      for (std::size_t c = 0; c < e.out.size(); ++c) {
        const double got = value_of(out[at * e.out.size() + c], case_.dtype);
        const double error = std::fabs(got - e.out[c]);
        const double bound =
            e.keys == 0 ? 0 : unit * (e.magnitude + 1e-3) + lost * static_cast<double>(e.keys) * 4;
        if (!(error <= bound)) {
          if (bad_out++ == 0) bad_row = rows[i / static_cast<std::size_t>(case_.heads)];
        }
        error2 += error * error;
        norm2 += e.out[c] * e.out[c];
      }
      if (!case_.with_lse) continue;
      const double got = lse[at];
      const bool same =
          e.keys == 0 ? std::isinf(got) && got < 0 : std::fabs(got - e.lse) <= 2e-4 + 1e-5 * std::fabs(e.lse);
      if (!same) ++bad_lse;
      if (e.keys != 0) worst_lse = std::max(worst_lse, std::fabs(got - e.lse));
    }
    const double relative = norm2 == 0 ? std::sqrt(error2) : std::sqrt(error2 / norm2);
    if (std::getenv("TESSERA_TEST_VERBOSE") != nullptr || bad_out + bad_lse > 0) {
      std::printf("%-44s out %.2e lse %.1e bad %zu %zu row %lld\n", name.c_str(), relative, worst_lse,
                  bad_out, bad_lse, static_cast<long long>(bad_row));
    }
    CHECK(bad_out == 0);
    CHECK(bad_lse == 0);
    CHECK(relative <= (case_.dtype == tessera::DType::kBF16 ? 4e-3 : 6e-4));
    if (!case_.with_lse) {
      for (float value : lse) REQUIRE(std::isnan(value));  // untouched
    }
  }

  Gpu& gpu_;
  PrefillCase case_;
  std::mt19937_64 rng_;
  std::vector<float> q_;  // (T, H, D)
  std::vector<float> k_;  // (K, S, D)
  std::vector<float> v_;
  std::int64_t pool_slots_ = 0;
  tessera::cuda::DeviceBuffer q_device_, positions_device_, counters_device_, pool_device_, table_device_;
  tessera::cuda::DeviceBuffer out_device_, lse_device_;
};

}  // namespace cuda_test
