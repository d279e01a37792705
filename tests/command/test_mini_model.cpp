// A trained model through the real command: it retrieves, it keeps doing so where a method keeps everything,
// and it loses what a method hides from it. Bounds are wide: they hold for any training run that was worth
// shipping.
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/core/device.hpp"
#include "tests/command/model_copy.hpp"
#include "tests/command/run_command.hpp"

namespace tessera::test {
namespace {

const std::string kModel = std::string(TESSERA_FIXTURES) + "/../../jobs/models/mini-m";
constexpr int kSamples = 6;

struct Answers {
  double score = 0;  // mean
  std::vector<std::string> texts;
  double prefill_sparsity = 0, decode_sparsity = 0;  // of the last sample
};

Answers answers(const TempFolder& folder, int ranks, const Words& options) {
  const std::string trace = folder / "mini.h5";
  const CommandResult run = run_command(
      tessera_on(ranks, Words{"eval", "--model", kModel, "--task", "ruler_niah", "--length", "2048",
                              "--samples", std::to_string(kSamples), "--seed", "91", "--prompt-style",
                              "compact", "--max-output-tokens", "128", "--trace", trace, "--fresh"} +
                            options));
  INFO(run.err);
  REQUIRE(run.code == 0);
  const CommandResult samples =
      run_command(tessera({"trace", "export", trace, "--table", "samples", "--format", "jsonl"}));
  REQUIRE(samples.code == 0);
  Answers found;
  for (const std::string& line : lines_of(samples.out)) {
    const nlohmann::json sample = nlohmann::json::parse(line);
    found.score += sample["score"].get<double>() / kSamples;
    found.texts.push_back(sample["prediction"]);
    found.prefill_sparsity = sample["prefill_sparsity"];
    found.decode_sparsity = sample["decode_sparsity"];
  }
  REQUIRE(found.texts.size() == kSamples);
  return found;
}

}  // namespace

TEST_CASE("a trained model retrieves, and loses what is hidden from it") {
  const TempFolder folder;
  const Answers dense = answers(folder, 1, {});
  CHECK(dense.score >= 0.75);

  // Budgets of the whole sequence: nothing is left out, on any grid.
  const Answers whole =
      answers(folder, 2,
              {"--sp", "2", "--prefill", "vertical_slash", "--set", "vertical_slash.columns=4096", "--set",
               "vertical_slash.diagonals=4096", "--decode", "quest", "--set", "quest.tokens=4096"});
  CHECK(whole.texts == dense.texts);
  CHECK(whole.prefill_sparsity == 0);
  CHECK(whole.decode_sparsity == 0);

  // Half of the pairs: what was asked for is mostly still there.
  const Answers half =
      answers(folder, 2, {"--tp", "2", "--prefill", "vertical_slash", "--prefill-sparsity", "0.5"});
  CHECK(half.prefill_sparsity == doctest::Approx(0.5).epsilon(0.1));
  CHECK(half.score >= dense.score - 0.25);

  // Decoding that sees the question and little before it: nothing to copy from.
  const Answers window = answers(folder, 1, {"--decode", "streaming", "--set", "streaming.window=256"});
  CHECK(window.decode_sparsity > 0.8);
  CHECK(window.score <= dense.score - 0.5);
}

// 16-bit products against fp32: a text may differ where two tokens were as likely.
TEST_CASE("a trained model answers on a GPU as on the CPU") {
  if (query_cuda().devices.empty()) {
    MESSAGE("SKIPPED: no GPU");
    return;
  }
  const TempFolder folder;
  const Words on_gpu = {"--device", "cuda"};
  const Answers expected = answers(folder, 1, {});
  const Words nothing_hidden[] = {{},
                                  {"--batch", "3"},
                                  {"--decode", "quest", "--set", "quest.tokens=4096"},
                                  {"--decode", "snapkv", "--set", "snapkv.tokens=4096"},
                                  {"--decode", "streaming", "--set", "streaming.window=4096"},
                                  {"--prefill", "vertical_slash", "--set", "vertical_slash.columns=4096"},
                                  {"--prefill", "flexprefill", "--set", "flexprefill.alpha=1"}};
  for (const Words& options : nothing_hidden) {
    const std::string method = options.empty() ? "dense" : options[1];
    CAPTURE(method);
    const Answers found = answers(folder, 1, options + on_gpu);
    int same = 0;
    for (std::size_t i = 0; i < kSamples; ++i) same += found.texts[i] == expected.texts[i];
    CHECK(same >= kSamples - 1);
    CHECK(found.prefill_sparsity == 0);
    CHECK(found.decode_sparsity == 0);
  }
  // Budgets that the GPU calibrates.
  for (const char* method : {"vertical_slash", "flexprefill"}) {
    CAPTURE(method);
    const Words half = {"--prefill", method, "--prefill-sparsity", "0.5"};
    const Answers found = answers(folder, 1, half + on_gpu);
    CHECK(found.prefill_sparsity == doctest::Approx(0.5).epsilon(0.2));
    CHECK(found.score >= expected.score - 0.25);
  }
  const Words window = {"--decode", "streaming", "--set", "streaming.window=256"};
  CHECK(answers(folder, 1, window + on_gpu).score <= expected.score - 0.5);
}

}  // namespace tessera::test
