#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <numeric>

#include "attention/page_scores.hpp"
#include "attention/page_select_cuda.hpp"
#include "kvcache/kv_view.hpp"
#include "tests/cuda_support.hpp"

using namespace tessera;
using namespace tessera::cuda;
using cuda_test::Gpu;

namespace {

constexpr int kPages = kBlockTokens / kPageTokens;

std::vector<std::byte> stored(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> bytes(values.size() * (dtype == DType::kF32 ? 4 : 2));
  if (dtype == DType::kF32) {
    std::memcpy(bytes.data(), values.data(), bytes.size());
  } else {
    const std::vector<std::uint16_t> bits = cuda_test::rounded(values, dtype);
    std::memcpy(bytes.data(), bits.data(), bytes.size());
  }
  return bytes;
}

std::vector<float> as_stored(const std::vector<float>& values, DType dtype) {
  return dtype == DType::kF32 ? values : cuda_test::widened(cuda_test::rounded(values, dtype), dtype);
}

struct Case {
  PageSelectProblem problem;
  DType q_dtype = DType::kBF16;
  DType bounds_dtype = DType::kBF16;
  std::vector<std::int32_t> positions;
  bool coarse = false;   // few values, so that scores tie
  bool special = false;  // NaN and infinities among the bounds
  bool holes = false;
};

// Finished pages of a list in the order of the definition, by a plain sort.
std::vector<std::int32_t> choose(const std::vector<float>& scores, std::int64_t budget) {
  std::vector<std::int32_t> pages(scores.size());
  std::iota(pages.begin(), pages.end(), 0);
  if (budget < static_cast<std::int64_t>(scores.size())) {
    std::erase_if(pages, [&](std::int32_t page) {
      return std::bit_cast<std::uint32_t>(scores[static_cast<std::size_t>(page)]) == kPageNotHeld;
    });
    std::stable_sort(pages.begin(), pages.end(), [&](std::int32_t a, std::int32_t b) {
      const float x = scores[static_cast<std::size_t>(a)];
      const float y = scores[static_cast<std::size_t>(b)];
      if (std::isnan(x) || std::isnan(y)) return !std::isnan(x) && std::isnan(y);
      return x > y;
    });
    pages.resize(std::min<std::size_t>(pages.size(), static_cast<std::size_t>(budget)));
    std::sort(pages.begin(), pages.end());
  }
  pages.push_back(static_cast<std::int32_t>(scores.size()));
  return pages;
}

// Lists chosen on the device from scores (N · lists, stride), of which list i has finished[i].
std::vector<std::vector<std::int32_t>> select(Gpu& gpu, const PageSelectProblem& problem,
                                              const DeviceBuffer& scores, std::int64_t score_stride,
                                              const DeviceBuffer& positions, int budget) {
  const auto lists = static_cast<std::size_t>(problem.all_lists());
  DevicePageSelectParams p;
  p.problem = problem;
  p.budget_pages = budget;
  p.positions = positions.as<std::int32_t>();
  p.scores = scores.as<float>();
  p.score_stride = score_stride;
  p.page_stride = std::min<std::int64_t>(budget, score_stride) + 1;
  DeviceBuffer pages = gpu.poisoned(lists * static_cast<std::size_t>(p.page_stride) * 4);
  DeviceBuffer begin = gpu.poisoned(lists * 4);
  DeviceBuffer count = gpu.poisoned(lists * 4);
  p.pages = pages.as<std::int32_t>();
  p.page_begin = begin.as<std::int32_t>();
  p.page_count = count.as<std::int32_t>();
  p.overlaps_previous = budget % 2 == 1;
  p.stream = gpu.stream();
  select_pages_on_device(p);
  const auto all = gpu.download<std::int32_t>(pages);
  const auto begins = gpu.download<std::int32_t>(begin);
  const auto counts = gpu.download<std::int32_t>(count);
  std::vector<std::vector<std::int32_t>> result;
  for (std::size_t i = 0; i < lists; ++i) {
    REQUIRE(begins[i] >= 0);
    REQUIRE(counts[i] >= 1);
    REQUIRE(static_cast<std::size_t>(begins[i] + counts[i]) <= all.size());
    result.emplace_back(all.begin() + begins[i], all.begin() + begins[i] + counts[i]);
  }
  return result;
}

void run(Gpu& gpu, const Case& c) {
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  CAPTURE(c.problem.heads);
  CAPTURE(c.problem.head_dim);
  CAPTURE(c.problem.per_query_head);
  std::mt19937_64 rng(seed);
  const PageSelectProblem& problem = c.problem;
  const auto dim = static_cast<std::size_t>(problem.head_dim);
  const auto draw = [&](std::size_t count, DType dtype) {
    std::vector<float> values = cuda_test::random_floats(count, rng, -2, 2);
    if (c.coarse) {
      for (float& value : values) value = std::round(value) / 2;
    }
    return as_stored(values, dtype);
  };
  const std::vector<float> q =
      draw(static_cast<std::size_t>(problem.sequences * problem.heads) * dim, c.q_dtype);
  std::int64_t blocks = 1;
  for (const std::int32_t position : c.positions)
    blocks = std::max<std::int64_t>(blocks, position / kBlockTokens + 1);
  const std::int64_t table_stride = blocks + 2;
  const std::int64_t slots = problem.sequences * problem.kv_heads * blocks;
  std::vector<std::int32_t> order(static_cast<std::size_t>(slots));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), rng);
  // (slots, 4, 2, D), lowest first; pages that are not finished stay NaN.
  std::vector<float> bounds(static_cast<std::size_t>(slots) * kPages * 2 * dim,
                            std::numeric_limits<float>::quiet_NaN());
  std::vector<std::int32_t> table(
      static_cast<std::size_t>(problem.sequences * problem.kv_heads * table_stride), kNoSlot);
  std::size_t next = 0;
  for (int n = 0; n < problem.sequences; ++n) {
    const std::int64_t finished = c.positions[static_cast<std::size_t>(n)] / kPageTokens;
    for (int head = 0; head < problem.kv_heads; ++head) {
      for (std::int64_t block = 0; block * kPages < finished; ++block) {
        if (c.holes && block % 5 == head) continue;
        const std::int32_t slot = order[next++];
        table[static_cast<std::size_t>((n * problem.kv_heads + head) * table_stride + block)] = slot;
        for (std::int64_t page = 0; page < kPages && block * kPages + page < finished; ++page) {
          float* pair = bounds.data() + static_cast<std::size_t>(slot * kPages + page) * 2 * dim;
          const std::vector<float> a = draw(dim, c.bounds_dtype);
          const std::vector<float> b = draw(dim, c.bounds_dtype);
          for (std::size_t d = 0; d < dim; ++d) {
            pair[d] = std::min(a[d], b[d]);
            pair[dim + d] = std::max(a[d], b[d]);
          }
          if (c.special && page == 1) pair[rng() % (2 * dim)] = std::numeric_limits<float>::quiet_NaN();
          if (c.special && page == 2) pair[dim + rng() % dim] = std::numeric_limits<float>::infinity();
        }
      }
    }
  }
  const DeviceBuffer q_on_device = gpu.upload(stored(q, c.q_dtype));
  const DeviceBuffer bounds_on_device = gpu.upload(stored(bounds, c.bounds_dtype));
  const DeviceBuffer table_on_device = gpu.upload(table);
  const DeviceBuffer positions = gpu.upload(c.positions);
  std::vector<const std::int32_t*> tables;
  for (int n = 0; n < problem.sequences; ++n) {
    tables.push_back(table_on_device.as<std::int32_t>() + n * problem.kv_heads * table_stride);
  }
  const DeviceBuffer tables_on_device = gpu.upload(tables);
  const std::int64_t stride = blocks * kPages + 1;
  const auto lists = static_cast<std::size_t>(problem.all_lists());
  DeviceBuffer scores = gpu.poisoned(lists * static_cast<std::size_t>(stride) * 4);
  DevicePageScoreParams p;
  p.problem = problem;
  p.multiprocessors = 132;
  p.q_dtype = c.q_dtype;
  p.q = q_on_device.data();
  p.positions = positions.as<std::int32_t>();
  p.tables = tables_on_device.as<const std::int32_t*>();
  p.table_stride = table_stride;
  p.bounds_dtype = c.bounds_dtype;
  p.bounds = bounds_on_device.data();
  p.scores = scores.as<float>();
  p.score_stride = stride;
  p.stream = gpu.stream();
  score_pages_on_device(p);
  const std::vector<float> got = gpu.download<float>(scores);

  std::vector<std::vector<float>> want(lists);
  std::int64_t different = 0;
  const int heads_a_list = problem.heads / problem.lists();
  for (std::size_t list = 0; list < lists; ++list) {
    const int n = static_cast<int>(list) / problem.lists();
    const int kv_head = static_cast<int>(list) % problem.lists() * problem.kv_heads / problem.lists();
    const SplitQuery split = split_query(q.data() + list * static_cast<std::size_t>(heads_a_list) * dim,
                                         heads_a_list, problem.head_dim);
    const std::int64_t finished = c.positions[static_cast<std::size_t>(n)] / kPageTokens;
    for (std::int64_t page = 0; page < finished; ++page) {
      const std::int32_t slot =
          table[static_cast<std::size_t>((n * problem.kv_heads + kv_head) * table_stride + page / kPages)];
      float score = std::bit_cast<float>(kPageNotHeld);
      if (slot != kNoSlot) {
        const float* pair = bounds.data() + static_cast<std::size_t>(slot * kPages + page % kPages) * 2 * dim;
        PageScoreParams one;
        one.pages = 1;
        one.head_dim = problem.head_dim;
        one.bounds = &pair;
        one.positive = split.positive.data();
        one.negative = split.negative.data();
        one.scores = &score;
        score_pages(one);
      }
      want[list].push_back(score);
      const float device = got[list * static_cast<std::size_t>(stride) + static_cast<std::size_t>(page)];
      // NaNs of arithmetic differ in their bits from machine to machine, but never look like a page not held.
      const bool same = slot == kNoSlot || !std::isnan(score)
                            ? std::bit_cast<std::uint32_t>(device) == std::bit_cast<std::uint32_t>(score)
                            : std::isnan(device) && std::bit_cast<std::uint32_t>(device) != kPageNotHeld;
      different += same ? 0 : 1;
    }
    for (std::int64_t page = finished; page < stride; ++page) {  // nothing written past the finished pages
      different += std::bit_cast<std::uint32_t>(
                       got[list * static_cast<std::size_t>(stride) + static_cast<std::size_t>(page)]) == ~0u
                       ? 0
                       : 1;
    }
  }
  CHECK(different == 0);

  for (const int budget : {0, 1, 6, 33, 409, 100'000}) {
    CAPTURE(budget);
    const auto chosen = select(gpu, problem, scores, stride, positions, budget);
    int wrong = 0;
    for (std::size_t list = 0; list < lists; ++list)
      wrong += chosen[list] == choose(want[list], budget) ? 0 : 1;
    CHECK(wrong == 0);
  }
}

}  // namespace

TEST_CASE("scores of pages are those of the CPU bit by bit, and so are the choices") {
  Gpu gpu;
  const std::vector<std::int32_t> positions = {0, 15, 16, 31, 63, 64, 511, 512, 513, 1000, 5000, 8191};
  int turn = 0;
  for (const int head_dim : {64, 128, 256}) {
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
      for (const bool per_query_head : {false, true}) {
        Case c;
        c.problem = {static_cast<int>(positions.size()), 10, 2, head_dim, per_query_head};
        c.positions = positions;
        c.bounds_dtype = dtype;
        c.q_dtype = turn % 3 == 0 ? DType::kF32 : turn % 3 == 1 ? DType::kBF16 : DType::kF16;
        c.coarse = turn % 2 == 1;
        c.special = turn % 4 == 0;
        c.holes = turn % 5 == 0;
        ++turn;
        run(gpu, c);
      }
    }
  }
}

TEST_CASE("groups of 1, 7, 8 and 16 heads") {
  Gpu gpu;
  for (const int group : {1, 7, 8, 16}) {
    Case c;
    c.problem = {3, 3 * group, 3, 128, false};
    c.positions = {4000, 0, 1234};
    c.coarse = group == 7;
    run(gpu, c);
  }
}

TEST_CASE("choices among scores made to be hard: all equal, both zeros, NaN, long lists") {
  Gpu gpu;
  const std::uint64_t seed = cuda_test::fresh_seed();
  CAPTURE(seed);
  std::mt19937_64 rng(seed);
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto kinds = std::vector<std::function<float()>>{
      [] { return 1.5f; },
      [&] { return rng() % 2 == 0 ? 0.0f : -0.0f; },
      [&] { return rng() % 3 == 0 ? nan : -infinity; },
      [&] { return std::bit_cast<float>(static_cast<std::uint32_t>(rng())); },  // any bits
      [&] { return 100.0f + static_cast<float>(rng() % 64) * 0x1p-17f; },       // neighbours, many ties
      [&] { return rng() % 9 == 0 ? std::bit_cast<float>(kPageNotHeld) : static_cast<float>(rng() % 7) - 3; },
      [&] { return rng() % 2 == 0 ? infinity : -infinity; },
      [&] { return static_cast<float>(rng()) * (rng() % 2 == 0 ? 1.0f : -1.0f); }};
  for (const std::int64_t finished : {1, 31, 1024, 8193, 10'240, 10'241, 50'000}) {
    PageSelectProblem problem = {1, static_cast<int>(kinds.size()), static_cast<int>(kinds.size()), 128,
                                 false};
    std::vector<float> scores;
    for (const auto& kind : kinds) {
      for (std::int64_t page = 0; page < finished; ++page) scores.push_back(kind());
    }
    const DeviceBuffer on_device = gpu.upload(scores);
    const DeviceBuffer positions =
        gpu.upload(std::vector<std::int32_t>{static_cast<std::int32_t>(finished * kPageTokens + 3)});
    for (const std::int64_t budget :
         std::vector<std::int64_t>{0, 1, 2, finished / 20, finished / 2, finished - 1}) {
      if (budget < 0) continue;
      CAPTURE(finished);
      CAPTURE(budget);
      const auto chosen = select(gpu, problem, on_device, finished, positions, static_cast<int>(budget));
      for (std::size_t list = 0; list < kinds.size(); ++list) {
        CAPTURE(list);
        const std::vector<float> own(scores.begin() + static_cast<std::ptrdiff_t>(list) * finished,
                                     scores.begin() + static_cast<std::ptrdiff_t>(list + 1) * finished);
        CHECK(chosen[list] == choose(own, budget));
      }
    }
  }
}
