// The naive transformer that says what low precision costs is, without rounding, the CPU transformer.
#include <doctest/doctest.h>

#include <cstdio>

#include "tests/model/drawn_models.hpp"

using namespace tessera;
using namespace tessera::testing;

TEST_CASE("the naive transformer gives the logits of the CPU transformer, and rounding costs what it may") {
  constexpr std::int64_t kPrompt = 150, kTotal = 170;
  for (const char* name : kFixtureShapes) {
    CAPTURE(name);
    double of_bf16 = 0;
    for (const DType dtype : {DType::kBF16, DType::kF16}) {
      const ModelConfig config = drawn_config(name, dtype);
      CpuModel cpu(config, kPrompt, kTotal, 1);
      const std::vector<std::int32_t> tokens = drawn_tokens(config, kTotal, 3);
      const std::vector<float> exact = forced_logits(cpu.transformer, tokens, kPrompt, kTotal);
      const reference::NaiveModel model = naive_model(cpu);
      const auto vocab = static_cast<std::size_t>(config.vocab);
      const std::size_t skipped = static_cast<std::size_t>(kPrompt - 1) * vocab;
      const auto error_of = [&](DType precision) {
        const reference::NaiveTransformer naive(model,
                                                [&](float value) { return rounded(value, precision); });
        const std::vector<float> logits = naive.logits(tokens);
        REQUIRE(logits.size() == skipped + exact.size());
        return largest_difference(logits.data() + skipped, exact.data(), exact.size());
      };
      double largest = 0;
      for (const float value : exact) largest = std::max(largest, std::abs(double{value}));
      CHECK(error_of(DType::kF32) <= 2e-5 * largest);
      const double error = error_of(dtype);
      std::printf("%s %s: largest logit %.2f, error of low precision %.2e\n", name,
                  std::string(name_of(dtype)).c_str(), largest, error);
      CHECK(error > 0);
      CHECK(error < 0.1 * largest);
      if (dtype == DType::kBF16) of_bf16 = error;
      if (dtype == DType::kF16) CHECK(error < 0.5 * of_bf16);
    }
  }
}
