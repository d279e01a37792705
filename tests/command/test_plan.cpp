// `tessera plan` as a user runs it: what it refuses and how, and that an eval takes what it said.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "jobs/trace_source.hpp"
#include "tests/command/model_copy.hpp"
#include "tests/command/refusal.hpp"

namespace tessera::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

Words plan(const std::string& model) {
  return {"plan", "--model", model, "--length", "1800", "--max-output-tokens", "4"};
}

// All lines are ours; which of `says` each one holds is the order in which they are told.
void check_all_refused(const CommandResult& result, int code, const std::vector<std::string>& says) {
  CAPTURE(result.err);
  CHECK(result.code == code);
  CHECK(result.out == "");
  const std::vector<std::string> lines = lines_of(result.err);
  REQUIRE(lines.size() == says.size());
  for (std::size_t i = 0; i < lines.size(); ++i) {
    CAPTURE(says[i]);
    CHECK(lines[i].rfind("tessera: ", 0) == 0);
    CHECK(lines[i].find(says[i]) != std::string::npos);
  }
}

json planned(const Words& words) {
  const CommandResult result = run_command(tessera(words + Words{"--format", "json"}));
  CAPTURE(result.err);
  REQUIRE(result.code == 0);
  return json::parse(result.out);
}

}  // namespace

TEST_CASE("plan prints the same grids in every format") {
  const std::string model = std::string(TESSERA_FIXTURES) + "/" + kQwen;
  const Words words = plan(model) + Words{"--ranks", "4", "--machine", "h200"};
  const json whole = planned(words);
  CHECK(whole.at("grids").size() == 6);
  CHECK(whole.at("grids").at(0).at("fits") == 1);
  CHECK(whole.at("run").at("dtype") == "bf16");
  for (const char* format : {"text", "markdown", "csv"}) {
    CAPTURE(format);
    const CommandResult result = run_command(tessera(words + Words{"--format", format}));
    CHECK(result.code == 0);
    CHECK(result.err == "");
    const bool rows = std::string(format) == "csv";
    CHECK((rows ? lines_of(result.out).size() == 7 : lines_of(result.out).size() > 15));
  }
}

TEST_CASE("plan needs no more than config.json where weights are drawn") {
  const TempFolder folder;
  const ModelCopy model(kQwen, folder.path());
  for (const char* file : {"model.safetensors", "tokenizer.json", "generation_config.json"})
    fs::remove(model / file);
  const Words words = plan(model.path());
  const json drawn = planned(words + Words{"--weights", "random:1"});
  CHECK(drawn.at("notes").at(0).get<std::string>().find("tokenizer.json") != std::string::npos);
  check_all_refused(run_command(tessera(words)), 3, {"model.safetensors", "tokenizer.json"});
}

TEST_CASE("plan takes the dtypes of weights from the files") {
  const TempFolder folder;
  const ModelCopy model(kQwen, folder.path());
  const json before = planned(plan(model.path()));
  model.edit_json("config.json", [](json& config) { config["torch_dtype"] = "float32"; });
  const json after = planned(plan(model.path()));
  CHECK(after.at("model").at("weights_bytes") == before.at("model").at("weights_bytes"));
  const json widened = planned(plan(model.path()) + Words{"--weights-dtype", "f32"});
  CHECK(widened.at("model").at("weights_bytes") == 2 * before.at("model").at("weights_bytes").get<double>());
}

TEST_CASE("plan tells all that is wrong, a line each") {
  const TempFolder folder;
  const ModelCopy model(kQwen, folder.path());
  fs::create_directory(folder / "taken.h5");
  const Words good = plan(model.path());
  const auto refused = [&](const Words& words, int code, const std::vector<std::string>& says) {
    check_all_refused(run_command(tessera(words)), code, says);
  };
  refused(with(good, "--model", folder / "none"), 3, {"none/config.json", "none/tokenizer.json"});
  refused(good + Words{"--tp", "3"}, 2, {"--tp 3"});
  refused(with(good, "--length", "40000") +
              Words{"--rope", "config", "--decode", "quest", "--budget", "study:10x"},
          2, {"32768", "--budget study"});
  refused(good + Words{"--decode", "quest", "--dense-layers", "0,3"}, 2, {"--dense-layers"});
  refused(good + Words{"--ranks", "8", "--tp", "3"}, 2, {"--ranks 8"});
  refused(good + Words{"--machine", "h300"}, 2, {"--machine"});
  refused(good + Words{"--task", "nonsense"}, 2, {"nonsense"});
  refused({"plan", "--model", model.path()}, 2, {"--length"});
  refused(good + Words{"--trace", folder / "taken.h5"}, 2, {"taken.h5"});
  refused(good + Words{"--trace", folder / "nowhere/out.h5"}, 4, {"nowhere/out.h5"});

  SUBCASE("tensors of other shapes, and a tokenizer of another model") {
    model.edit_json("config.json", [](json& config) {
      config["intermediate_size"] = 176;
      config["vocab_size"] = 484;
    });
    const CommandResult result = run_command(tessera(good));
    CHECK(result.code == 3);
    const std::vector<std::string> lines = lines_of(result.err);
    CHECK(lines.size() == 1 + 3 * 3 + 1);  // the table, three matrices of each layer, tokenizer.json
    CHECK(result.err.find("embed_tokens") != std::string::npos);
    CHECK(result.err.find("layers.2.mlp.down_proj") != std::string::npos);
    CHECK(lines.back().find("tokenizer.json") != std::string::npos);
  }
  SUBCASE("a full disk") {
    refused(good + Words{"--samples", "100000000", "--ranks", "4096", "--trace", folder / "out.h5"}, 4,
            {"disk: "});
  }
}

TEST_CASE("plan refuses what does not fit, by how much, and says what would") {
  const TempFolder folder;
  const ModelCopy model(kQwen, folder.path());
  model.edit_json("config.json", [](json& config) { config["max_position_embeddings"] = 1 << 26; });
  const Words words = with(plan(model.path()), "--length", "100000") +
                      Words{"--rope", "config", "--batch", "4", "--device-memory", "0.3"};
  const CommandResult result = run_command(tessera(words));
  check_refused(result, 4,
                {"memory: no grid of 1 rank fits", "0.30 GB of cpu", "at least ", "at most --length "});
  // What it says is so.
  const auto number_after = [&](const std::string& text) {
    return std::stoll(result.err.substr(result.err.find(text) + text.size()));
  };
  const long long length = number_after("at most --length "), ranks = number_after("at least ");
  REQUIRE(ranks > 1);
  CHECK(run_command(tessera(with(words, "--length", std::to_string(length)))).code == 0);
  CHECK(run_command(tessera(with(words, "--length", std::to_string(length + 1)))).code == 4);
  CHECK(run_command(tessera(words + Words{"--ranks", std::to_string(ranks)})).code == 0);
  CHECK(run_command(tessera(words + Words{"--ranks", std::to_string(ranks - 1)})).code == 4);
  // Where ranks share this host's memory, as eval has it.
  check_refused(run_command(tessera(with(plan(model.path()), "--length", "16000000") +
                                    Words{"--rope", "config", "--batch", "4096"})),
                4, {"memory: ", "this host's memory", "at most --length "});
}

TEST_CASE("an eval takes the memory that was planned") {
  const TempFolder folder;
  struct Case {
    const char* model;
    int tp, sp, batch;
    Words more;
  };
  const std::vector<Case> cases = {
      {kQwen, 1, 1, 1, {}},
      {kQwen, 2, 1, 1, {}},
      {kQwen, 4, 1, 1, {}},  // two KV heads
      {kQwen, 1, 2, 1, {}},
      {kQwen, 2, 2, 3, {}},
      {kQwen, 1, 1, 3, {"--decode", "quest", "--decode-sparsity", "0.9", "--kv-dtype", "bf16"}},
      {kQwen, 2, 1, 2, {"--weights", "random:3", "--weights-dtype", "f32"}},
      {kQwen, 2, 1, 1, {"--weights-dtype", "f32"}},
      {kQwen, 1, 1, 3, {"--decode", "snapkv", "--decode-sparsity", "0.7"}},
      {kGemma, 2, 1, 2, {}},
      {kLlama, 1, 2, 2, {"--kv-dtype", "f16"}},
  };
  int number = 0;
  for (const Case& c : cases) {
    CAPTURE(number);
    const std::string model = std::string(TESSERA_FIXTURES) + "/" + c.model;
    const std::string trace = folder / (std::to_string(number++) + ".h5");
    const Words same = Words{"--model",
                             model,
                             "--task",
                             "ruler_niah",
                             "--length",
                             "4000",
                             "--samples",
                             "3",
                             "--max-output-tokens",
                             "8",
                             "--trace",
                             trace,
                             "--tp",
                             std::to_string(c.tp),
                             "--sp",
                             std::to_string(c.sp),
                             "--batch",
                             std::to_string(c.batch),
                             "--threads",
                             "1"} +
                       c.more;
    const json report = planned(Words{"plan"} + same);
    REQUIRE(report.at("grids").size() == 1);
    const json& grid = report.at("grids").at(0);
    const Words rates{"--flops", "0.1", "--bandwidth", "20", "--link-bandwidth", "5"};
    const CommandResult result = run_command(tessera_on(c.tp * c.sp, Words{"eval"} + same + rates));
    CAPTURE(result.err);
    REQUIRE(result.code == 0);
    CHECK(result.out.find("plan: memory of a rank: weights ") != std::string::npos);
    CHECK(result.out.find("plan (cpu): prefill ") != std::string::npos);

    double kv = 0, weights = 0, peak = 0, flops = 0;
    const auto source = open_source(trace);
    for (std::size_t i = 0; i < source->tables().samples.size(); ++i) {
      const SampleRecord sample = source->load(i);
      flops = std::max(flops, static_cast<double>(sample.flops_attention.at(0)));
      for (const RankTimes& rank : sample.ranks) {
        kv = std::max(kv, static_cast<double>(rank.kv));
        weights = std::max(weights, static_cast<double>(rank.weights));
        peak = std::max(peak, static_cast<double>(rank.device_peak));
      }
    }
    CHECK(grid.at("weights_bytes").get<double>() == doctest::Approx(weights).epsilon(0.05));
    CHECK(grid.at("kv_used_bytes").get<double>() == doctest::Approx(kv).epsilon(0.05));
    CHECK(grid.at("kv_bytes").get<double>() >= kv);
    CHECK(grid.at("memory_bytes").get<double>() >= 0.98 * peak);
    // Prompts fill 95 to 100 % of the length, and attention goes by its square.
    const double planned_flops = report.at("sample").at("flops_attention").at("prefill").get<double>();
    CHECK(flops <= planned_flops);
    CHECK(flops >= 0.9 * planned_flops);
  }
}

}  // namespace tessera::test
