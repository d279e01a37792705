#include <doctest/doctest.h>

#include <set>
#include <string>

#include "attention/budget.hpp"
#include "attention/select.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/random.hpp"

using namespace tessera;

namespace {

const Method& prefill(const char* name) {
  return find_method(Phase::kPrefill, name);
}
const Method& decode(const char* name) {
  return find_method(Phase::kDecode, name);
}

double share_hidden(std::int64_t visible, std::int64_t dense) {
  return static_cast<double>(dense - visible) / static_cast<double>(dense);
}

// Pair by pair: which keys a query sees when each row of blocks keeps the forced ones and then the oldest.
double block_sparse_by_pairs(std::int64_t length, std::int64_t edge, std::int64_t blocks) {
  std::int64_t visible = 0;
  std::int64_t dense = 0;
  for (std::int64_t q = 0; q < length; ++q) {
    const std::int64_t row = q / edge;
    std::set<std::int64_t> kept = {0, row};
    if (row > 0) kept.insert(row - 1);
    for (std::int64_t b = 0; b <= row && static_cast<std::int64_t>(kept.size()) < blocks; ++b) kept.insert(b);
    for (std::int64_t k = 0; k <= q; ++k) {
      ++dense;
      visible += kept.count(k / edge) != 0;
    }
  }
  return share_hidden(visible, dense);
}

double streaming_prefill_by_pairs(std::int64_t length, std::int64_t sinks, std::int64_t window) {
  std::int64_t visible = 0;
  std::int64_t dense = 0;
  for (std::int64_t q = 0; q < length; ++q) {
    const std::int64_t oldest_page = std::max<std::int64_t>(0, q / 64 * 64 - window + 1) / 16;
    for (std::int64_t k = 0; k <= q; ++k) {
      ++dense;
      visible += k < sinks || k / 16 >= oldest_page;
    }
  }
  return share_hidden(visible, dense);
}

// A cache of token positions, simulated step by step.
double decode_by_steps(const std::string& name, std::int64_t length, std::int64_t output,
                       std::int64_t budget) {
  std::set<std::int64_t> cache;
  for (std::int64_t t = 0; t < length; ++t) cache.insert(t);
  if (name == "snapkv") {  // which tokens go does not matter to the count
    while (static_cast<std::int64_t>(cache.size()) > std::max<std::int64_t>(budget, 132)) {
      cache.erase(std::next(cache.begin(), 4));
    }
  }
  std::int64_t read = 0;
  std::int64_t dense = 0;
  const std::int64_t steps = output > 1 ? output - 1 : 1;
  for (std::int64_t position = length; position < length + steps; ++position) {
    cache.insert(position);
    dense += position + 1;
    if (name == "quest") {
      const std::int64_t current = position / 16;
      std::set<std::int64_t> pages = {current};
      for (std::int64_t p = 0; p < current && p < budget / 16; ++p) pages.insert(p);
      for (std::int64_t t : cache) read += pages.count(t / 16) != 0;
    } else if (name == "streaming") {
      for (std::int64_t t : cache) read += t < 4 || t > position - budget;
    } else {
      read += static_cast<std::int64_t>(cache.size());
    }
  }
  return share_hidden(read, dense);
}

std::string message_of(const Method& method, std::int64_t length, double compression) {
  try {
    study_budget(method, length, compression);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("the study's budgets") {
  const auto vertical = study_budget(prefill("vertical_slash"), 131072, 10);
  CHECK(vertical.native == std::map<std::string, double>{{"columns", 1024}, {"diagonals", 1024}});
  CHECK(vertical.expected_sparsity == doctest::Approx(0.9));
  CHECK(study_budget(prefill("vertical_slash"), 16384, 1.43).native.at("columns") == 2304);
  CHECK(study_budget(prefill("vertical_slash"), 32768, 3.33).native.at("diagonals") == 1024);
  CHECK(study_budget(prefill("flexprefill"), 16384, 5).native ==
        std::map<std::string, double>{{"alpha", .55}, {"floor", 512}});
  CHECK(study_budget(prefill("flexprefill"), 65536, 20).native ==
        std::map<std::string, double>{{"alpha", 0}, {"floor", 400}});

  const auto blocks = study_budget(prefill("block_sparse"), 32768, 7.5);
  CHECK(blocks.native == std::map<std::string, double>{{"blocks", 141}, {"edge", 16}});
  // The table is meant to give 1 − 1/7.5.
  CHECK(blocks.expected_sparsity == doctest::Approx(1 - 1 / 7.5).epsilon(2e-3));
  for (const double compression : {20., 15., 10., 7.5, 5., 3., 2.}) {
    for (const std::int64_t length : {16384, 32768, 65536}) {
      CHECK(study_budget(prefill("block_sparse"), length, compression).expected_sparsity ==
            doctest::Approx(1 - 1 / compression).epsilon(5e-3));
    }
  }

  CHECK(study_budget(decode("snapkv"), 16384, 20).native.at("tokens") == 819);
  CHECK(study_budget(decode("ada_snapkv"), 16384, 1.43).native.at("tokens") == 11468);
  CHECK(study_budget(decode("snapkv"), 65536, 2).expected_sparsity == doctest::Approx(0.5).epsilon(1e-4));
  CHECK(study_budget(decode("quest"), 16384, 20).native.at("tokens") == 816);
  CHECK(study_budget(decode("quest"), 131072, 20).native.at("tokens") == 6544);
  CHECK(study_budget(decode("snapkv"), 16384, 10).note.empty());
  CHECK_FALSE(study_budget(decode("pyramidkv"), 16384, 10).note.empty());
}

TEST_CASE("a length within 5 % of a listed one takes its row; others are refused with what exists") {
  CHECK(study_budget(prefill("vertical_slash"), 128000, 10).native.at("columns") == 1024);
  CHECK(study_budget(prefill("vertical_slash"), 15600, 10).native.at("columns") == 315);
  CHECK(study_budget(prefill("block_sparse"), 17200, 10).native.at("blocks") == 53);
  CHECK(study_budget(decode("snapkv"), 16000, 10).native.at("tokens") == 1600);

  const std::string between = message_of(prefill("vertical_slash"), 24000, 10);
  CHECK(contains(between, "24000"));
  CHECK(contains(between, "16384, 32768, 65536, 131072"));
  CHECK(contains(message_of(prefill("vertical_slash"), 15500, 10), "15500"));
  const std::string long_prompt = message_of(decode("snapkv"), 131072, 10);
  CHECK(contains(long_prompt, "16384, 32768, 65536;"));
  const std::string compression = message_of(prefill("block_sparse"), 16384, 3.33);
  CHECK(contains(compression, "20x, 15x, 10x, 7.5x, 5x, 3x, 2x"));
  const std::string method = message_of(prefill("streaming"), 16384, 10);
  CHECK(contains(method, "streaming"));
  CHECK(contains(method, "vertical_slash, flexprefill, block_sparse, snapkv, ada_snapkv, pyramidkv, quest"));
}

TEST_CASE("sparsity by arithmetic equals counting pair by pair") {
  for (const std::int64_t length : {1, 15, 64, 65, 200, 777}) {
    for (const int edge : {16, 32, 64, 128}) {
      for (const int blocks : {3, 4, 9, 1000}) {
        const MethodSettings settings(
            prefill("block_sparse"),
            {{"block_sparse.blocks", std::to_string(blocks)}, {"block_sparse.edge", std::to_string(edge)}});
        CHECK(sparsity_of(settings, length, 1) == block_sparse_by_pairs(length, edge, blocks));
      }
    }
    for (const int window : {16, 17, 64, 100, 640, 2000}) {
      const MethodSettings settings(prefill("streaming"), {{"streaming.window", std::to_string(window)}});
      CHECK(sparsity_of(settings, length, 1) == streaming_prefill_by_pairs(length, 4, window));
    }
  }
}

TEST_CASE("sparsity by arithmetic is what the methods' selections have") {
  const int heads = 2, head_dim = 8;
  for (const std::int64_t length : {1, 63, 130, 900}) {
    CounterRng rng(static_cast<std::uint64_t>(length), 9);
    std::vector<float> q(static_cast<std::size_t>(length * heads * head_dim));
    for (float& value : q) value = static_cast<float>(rng.uniform() - 0.5);
    SelectInput input;
    input.tokens = length;
    input.heads = heads;
    input.kv_heads = heads;
    input.head_dim = head_dim;
    input.q = q.data();
    input.k = q.data();
    input.scale = 0.5f;
    const auto check = [&](const MethodSettings& settings) {
      const PairCounts pairs = count_pairs(select_prefill(input, settings).selection);
      REQUIRE(pairs.visible.size() == heads);
      for (std::size_t head = 0; head < heads; ++head) {
        CHECK(sparsity_of(settings, length, 1) ==
              share_hidden(static_cast<std::int64_t>(pairs.visible[head]),
                           static_cast<std::int64_t>(pairs.causal[head])));
      }
    };
    for (const char* window : {"1", "50", "64", "300"}) {
      check(MethodSettings(prefill("streaming"), {{"streaming.window", window}}));
    }
    for (const char* edge : {"16", "32", "64", "128"}) {
      check(MethodSettings(prefill("block_sparse"),
                           {{"block_sparse.blocks", "4"}, {"block_sparse.edge", edge}}));
    }
  }
}

TEST_CASE("decode sparsity by arithmetic equals reading step by step") {
  for (const std::int64_t length : {1, 16, 131, 140, 600, 1023}) {
    for (const std::int64_t output : {0, 1, 2, 40}) {
      for (const int budget : {16, 160, 512, 4096}) {
        for (const std::string name : {"quest", "snapkv", "streaming"}) {
          if (name == "snapkv" && budget < 132) continue;
          const std::string key = name + (name == "streaming" ? ".window" : ".tokens");
          const MethodSettings settings(decode(name.c_str()), {{key, std::to_string(budget)}});
          CAPTURE(name);
          CAPTURE(length);
          CAPTURE(output);
          CHECK(sparsity_of(settings, length, output) == decode_by_steps(name, length, output, budget));
        }
      }
    }
  }
}

TEST_CASE("methods whose choice depends on the data have no arithmetic") {
  CHECK_FALSE(sparsity_of(MethodSettings(prefill("vertical_slash"), {}), 1000, 1).has_value());
  CHECK_FALSE(sparsity_of(MethodSettings(prefill("flexprefill"), {}), 1000, 1).has_value());
  CHECK_FALSE(sparsity_of(MethodSettings(prefill("xattention"), {}), 1000, 1).has_value());
  CHECK_FALSE(sparsity_of(MethodSettings(decode("topp_pages"), {}), 1000, 1).has_value());
  CHECK_THROWS_AS(solve_target(MethodSettings(prefill("vertical_slash"), {}), 1000, 1, 0.9), UsageError);
  CHECK_THROWS_AS(solve_target(MethodSettings(decode("topp_pages"), {}), 1000, 1, 0.9), UsageError);
}

TEST_CASE("a target is solved to the largest budget that reaches it") {
  struct Row {
    const char* method;
    Phase phase;
    const char* name;
    int least;
    int step;
  };
  const Row rows[] = {
      {"block_sparse", Phase::kPrefill, "blocks", 3, 1}, {"streaming", Phase::kPrefill, "window", 1, 1},
      {"streaming", Phase::kDecode, "window", 1, 1},     {"snapkv", Phase::kDecode, "tokens", 132, 1},
      {"ada_snapkv", Phase::kDecode, "tokens", 132, 1},  {"pyramidkv", Phase::kDecode, "tokens", 132, 1},
      {"quest", Phase::kDecode, "tokens", 16, 16}};
  for (const Row& row : rows) {
    MethodSettings settings(find_method(row.phase, row.method), {});
    for (const std::int64_t length : {40, 900, 3001}) {
      for (const double target : {0.0, 0.3, 0.5, 0.75, 0.9, 0.99}) {
        CAPTURE(row.method);
        CAPTURE(length);
        CAPTURE(target);
        const BudgetResult solved = solve_target(settings, length, 33, target);
        REQUIRE(solved.native.size() == 1);
        const int budget = static_cast<int>(solved.native.at(row.name));
        settings.set(row.name, budget);
        CHECK(sparsity_of(settings, length, 33) == solved.expected_sparsity);
        if (solved.expected_sparsity >= target) {
          CHECK(solved.note.empty());
          // One more would fall short, or already nothing is left out.
          settings.set(row.name, budget + row.step);
          const double next = *sparsity_of(settings, length, 33);
          CHECK((next < target || next == 0));
        } else {
          CHECK(budget == row.least);
          CHECK(contains(solved.note, row.method));
          CHECK(contains(solved.note, "forced"));
        }
      }
    }
  }
}

TEST_CASE("short prompts: forced units bound what can be reached, and the result says so") {
  const MethodSettings blocks(prefill("block_sparse"), {});
  const BudgetResult solved = solve_target(blocks, 1024, 1, 0.9);
  CHECK(solved.native.at("blocks") == 3);
  CHECK(solved.expected_sparsity == block_sparse_by_pairs(1024, 64, 3));
  CHECK(solved.expected_sparsity < 0.9);
  CHECK(contains(solved.note, "0.9"));
  CHECK(contains(solved.note, "1024"));
  CHECK(solve_target(blocks, 32768, 1, 0.9).note.empty());
  CHECK(solve_target(MethodSettings(decode("snapkv"), {}), 200, 2, 0.9).native.at("tokens") == 132);
  CHECK_THROWS_AS(solve_target(blocks, 1024, 1, 1.0), UsageError);
  CHECK_THROWS_AS(solve_target(blocks, 1024, 1, -0.1), UsageError);
}
