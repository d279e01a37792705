#include <doctest/doctest.h>

#include <numeric>

#include "attention/decode_cuda.hpp"
#include "runtime/core/error.hpp"
#include "tests/attention/cuda_decode_case.hpp"

using namespace tessera;
using namespace tessera::cuda;
using cuda_test::DecodeBatch;
using cuda_test::DecodeErrors;
using cuda_test::DecodeShape;
using cuda_test::Gpu;

namespace {

const std::vector<std::int64_t> kLengths = {0, 1, 15, 16, 17, 63, 64, 65, 1000, 5000};

// P is rounded to the type before it meets V, whose sum over many keys nearly cancels: the error of a row is
// a few roundings of the type. With fp32 outputs nothing else is rounded.
double tolerance(DType dtype, bool out_f32) {
  const double unit = dtype == DType::kBF16 ? 0x1p-8 : 0x1p-11;
  return out_f32 ? unit : 1.5 * unit;
}
constexpr double kLseTolerance = 2e-5;

std::vector<std::int64_t> each_head(const std::vector<std::int64_t>& lengths, int kv_heads) {
  std::vector<std::int64_t> rows;
  for (const std::int64_t length : lengths)
    rows.insert(rows.end(), static_cast<std::size_t>(kv_heads), length);
  return rows;
}

std::vector<std::int32_t> newest(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int32_t> positions;
  for (const std::int64_t length : lengths) positions.push_back(static_cast<std::int32_t>(length) - 1);
  return positions;
}

void check(const DecodeErrors& errors, DType dtype, bool out_f32) {
  CHECK(errors.complete);
  CHECK(errors.out <= tolerance(dtype, out_f32));
  CHECK(errors.lse <= kLseTolerance);
}

struct Worst {
  DecodeErrors bf16;
  DecodeErrors f16;
  void add(const DecodeErrors& errors, DType dtype) {
    DecodeErrors& worst = dtype == DType::kBF16 ? bf16 : f16;
    worst.out = std::max(worst.out, errors.out);
    worst.lse = std::max(worst.lse, errors.lse);
  }
  void print(const char* what) const {
    std::printf("%-12s bf16 out %.2e lse %.1e, fp16 out %.2e lse %.1e\n", what, bf16.out, bf16.lse, f16.out,
                f16.lse);
  }
};

}  // namespace

TEST_CASE("dense decode: every group size and head dimension, mixed lengths, any number of shares") {
  Gpu gpu;
  Worst worst;
  int turn = 0;
  for (const int head_dim : {64, 128, 256}) {
    for (const int group : {1, 4, 5, 7, 8, 16}) {
      const DecodeShape shape = {2 * group, 2, head_dim, turn++ % 2 == 0 ? DType::kBF16 : DType::kF16};
      const std::uint64_t seed = cuda_test::fresh_seed();
      CAPTURE(head_dim);
      CAPTURE(group);
      CAPTURE(seed);
      DecodeBatch batch(gpu, shape, each_head(kLengths, 2), seed);
      const DeviceBuffer positions = gpu.upload(newest(kLengths));
      const auto all = [](int, int, std::int64_t) { return true; };
      DecodeReach reach;
      reach.positions = positions.as<std::int32_t>();
      batch.run(reach, 2, 0, true);
      const DecodeErrors errors = batch.compare(all);
      check(errors, shape.dtype, true);
      worst.add(errors, shape.dtype);
      const std::vector<float> out = batch.out();
      const std::vector<float> lse = batch.lse();
      batch.run(reach, 2, 0, true, true, true);  // the same bits again, launches overlapped
      CHECK(batch.out() == out);
      CHECK(batch.lse() == lse);
      batch.run(reach, 2, turn % 2 == 0 ? 7 : 1, false);
      check(batch.compare(all), shape.dtype, false);
    }
  }
  worst.print("dense");
}

TEST_CASE("sliding windows with sinks, and positions past the length") {
  Gpu gpu;
  Worst worst;
  const std::vector<std::int64_t> lengths = {0, 1, 17, 64, 100, 1000, 2050};
  std::vector<std::int32_t> positions = newest(lengths);
  positions[4] += 40;  // keys 100 … 139 are held by nobody
  const DeviceBuffer on_device = gpu.upload(positions);
  const DeviceBuffer length_on_device = gpu.upload(std::vector<std::int32_t>(lengths.begin(), lengths.end()));
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const DecodeShape shape = {12, 3, 128, dtype};
    DecodeBatch batch(gpu, shape, each_head(lengths, 3), seed);
    for (const int window : {1, 16, 17, 100, 1024, 4096}) {
      for (const int sinks : {0, 4, 16, 20, 1500}) {
        CAPTURE(window);
        CAPTURE(sinks);
        DecodeReach reach;
        reach.positions = on_device.as<std::int32_t>();
        reach.lengths = length_on_device.as<std::int32_t>();
        reach.window = window;
        reach.sinks = sinks;
        batch.run(reach, 3, sinks == 4 ? 5 : 0, true, window == 100, window == 100);
        const DecodeErrors errors = batch.compare([&](int n, int, std::int64_t j) {
          return j > positions[static_cast<std::size_t>(n)] - window || j < sinks;
        });
        check(errors, dtype, true);
        worst.add(errors, dtype);
      }
    }
  }
  worst.print("window");
}

TEST_CASE("blocks that are not held are skipped") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  const DecodeShape shape = {8, 2, 128, DType::kBF16};
  DecodeBatch batch(gpu, shape, each_head(kLengths, 2), seed, [](int n, int kv_head, std::int64_t block) {
    return n != 5 && (block / 3 + kv_head) % 2 == 0;  // sequence 5 has nothing here
  });
  const DeviceBuffer positions = gpu.upload(newest(kLengths));
  DecodeReach reach;
  reach.positions = positions.as<std::int32_t>();
  for (const int ctas : {0, 2, 40}) {
    batch.run(reach, 2, ctas, true);
    check(batch.compare([](int, int, std::int64_t) { return true; }), shape.dtype, true);
  }
}

TEST_CASE("packed heads of different lengths") {
  Gpu gpu;
  Worst worst;
  for (const int head_dim : {64, 128, 256}) {
    const std::uint64_t seed = cuda_test::fresh_seed();
    CAPTURE(head_dim);
    CAPTURE(seed);
    const DecodeShape shape = {28, 4, head_dim, head_dim == 64 ? DType::kF16 : DType::kBF16};
    const std::vector<std::int64_t> rows = {0, 132, 6553, 17, 1, 0, 64, 2000, 0, 0, 0, 0, 300, 301, 302, 303};
    DecodeBatch batch(gpu, shape, rows, seed);
    const DeviceBuffer on_device = gpu.upload(std::vector<std::int32_t>(rows.begin(), rows.end()));
    DecodeReach reach;
    reach.rows_of_head = on_device.as<std::int32_t>();
    for (const int ctas : {0, 3}) {
      batch.run(reach, 4, ctas, true, true, ctas == 3);
      const DecodeErrors errors = batch.compare([](int, int, std::int64_t) { return true; });
      check(errors, shape.dtype, true);
      worst.add(errors, shape.dtype);
    }
  }
  worst.print("packed");
}

TEST_CASE("page lists, of KV heads and of query heads, planned by count and by budget") {
  Gpu gpu;
  Worst worst;
  for (const int head_dim : {64, 128, 256}) {
    for (const bool per_query_head : {false, true}) {
      for (const bool holes : {false, true}) {
        const std::uint64_t seed = cuda_test::fresh_seed();
        CAPTURE(head_dim);
        CAPTURE(per_query_head);
        CAPTURE(holes);
        CAPTURE(seed);
        const DecodeShape shape = {10, 2, head_dim, holes ? DType::kF16 : DType::kBF16};
        const std::vector<std::int64_t> lengths = {1, 16, 17, 65, 1000, 5000, 2048};
        DecodeBatch batch(gpu, shape, each_head(lengths, 2), seed,
                          [&](int, int, std::int64_t block) { return !holes || block % 3 != 1; });
        std::mt19937_64 rng(seed + 1);
        const int lists = per_query_head ? shape.heads : shape.kv_heads;
        constexpr int kBudget = 20;
        std::vector<std::int32_t> pages;
        std::vector<std::int32_t> begin;
        std::vector<std::int32_t> count;
        std::vector<std::vector<bool>> chosen;
        for (std::size_t n = 0; n < lengths.size(); ++n) {
          const std::int64_t current = (lengths[n] - 1) / kPageTokens;
          for (int list = 0; list < lists; ++list) {
            std::vector<std::int32_t> finished(static_cast<std::size_t>(current));
            std::iota(finished.begin(), finished.end(), 0);
            std::shuffle(finished.begin(), finished.end(), rng);
            // One list of each sequence has the current page alone, another one is empty.
            const std::size_t keep = list == 1 ? 0 : std::min<std::size_t>(finished.size(), kBudget);
            finished.resize(keep);
            if (n != 4 || list != 0) finished.push_back(static_cast<std::int32_t>(current));
            std::sort(finished.begin(), finished.end());
            pages.resize(pages.size() + rng() % 5, -7);  // gaps that belong to no list
            begin.push_back(static_cast<std::int32_t>(pages.size()));
            if (n == 5 && list == 0) finished.clear();
            count.push_back(static_cast<std::int32_t>(finished.size()));
            pages.insert(pages.end(), finished.begin(), finished.end());
            chosen.emplace_back(static_cast<std::size_t>(current) + 1, false);
            for (const std::int32_t page : finished) chosen.back()[static_cast<std::size_t>(page)] = true;
          }
        }
        const DeviceBuffer positions = gpu.upload(newest(lengths));
        const DeviceBuffer pages_on_device = gpu.upload(pages);
        std::vector<std::int32_t> rows(count.size() * (kBudget + 3),
                                       -7);  // the same lists at equal distances
        for (std::size_t i = 0; i < count.size(); ++i) {
          std::copy_n(pages.begin() + begin[i], count[i],
                      rows.begin() + static_cast<std::ptrdiff_t>(i) * (kBudget + 3));
        }
        const DeviceBuffer rows_on_device = gpu.upload(rows);
        const DeviceBuffer begin_on_device = gpu.upload(begin);
        const DeviceBuffer count_on_device = gpu.upload(count);
        DecodeReach reach;
        reach.positions = positions.as<std::int32_t>();
        reach.page_count = count_on_device.as<std::int32_t>();
        for (const int budget : {-1, kBudget}) {
          for (const int ctas : {0, 4}) {
            reach.budget_pages = budget;
            const bool strided = budget == kBudget && ctas == 0;
            reach.pages = (strided ? rows_on_device : pages_on_device).as<std::int32_t>();
            reach.page_begin = strided ? nullptr : begin_on_device.as<std::int32_t>();
            reach.page_stride = kBudget + 3;
            batch.run(reach, lists, ctas, true, true, budget == kBudget);
            const DecodeErrors errors = batch.compare([&](int n, int head, std::int64_t j) {
              const int list = n * lists + head / (shape.heads / lists);
              return static_cast<bool>(
                  chosen[static_cast<std::size_t>(list)][static_cast<std::size_t>(j / kPageTokens)]);
            });
            check(errors, shape.dtype, true);
            worst.add(errors, shape.dtype);
          }
        }
      }
    }
  }
  worst.print("page lists");
}

TEST_CASE("sizes of plan and workspace, and refusals") {
  const DecodeProblem problem = {3, 16, 2, 128, 2};
  const DecodeConfig config = choose_decode_config(problem, 132);
  CHECK(config.ctas == 132);
  CHECK(decode_workspace_bytes(problem, config) == (6 + 132) * 8 * (128 * 4 + 8));
  CHECK(decode_plan_bytes(problem, config) >= 8 + 7 * 4 + 132 * 8);
  CHECK_THROWS_AS(choose_decode_config({1, 8, 8, 96, 8}, 132), InternalError);
  CHECK_THROWS_AS(choose_decode_config({1, 34, 2, 128, 2}, 132), InternalError);  // 17 heads a list
}
