// What goes wrong while a run is under way: the whole job ends, soon, with the culprit's message and code.
#include <doctest/doctest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/command/model_copy.hpp"
#include "tests/command/run_command.hpp"

namespace tessera::test {
namespace {

namespace fs = std::filesystem;

Words eval(const std::string& model, const std::string& trace) {
  return {"eval",     "--model",   model,       "--task",  "ruler_niah",
          "--length", "1500",      "--samples", "40",      "--max-output-tokens",
          "16",       "--threads", "1",         "--trace", trace};
}

// A model of the fixture with one weight that is no number.
void put_nan(const ModelCopy& model, const std::string& tensor) {
  const std::size_t at = model.offset_of("model.safetensors", tensor);
  model.edit_text("model.safetensors",
                  [&](std::string& bytes) { bytes.replace(at, 2, "\xc0\x7f"); });  // bf16
}

std::vector<std::string> lines_with(const std::string& text, const std::string& part) {
  std::vector<std::string> found;
  for (const std::string& line : lines_of(text)) {
    if (line.find(part) != std::string::npos) found.push_back(line);
  }
  return found;
}

// Two ranks given the same options, each of which finds its own model under that name.
Words in_folders(const std::string& folder_of_0, const std::string& folder_of_1, const Words& arguments) {
  return mpirun() + Words{"-np", "1", "-wdir", folder_of_0} + tessera(arguments) +
         Words{":", "-np", "1", "-wdir", folder_of_1} + tessera(arguments);
}

bool has_sample(const std::string& trace) {
  return fs::exists(trace + ".journal") &&
         read_file(trace + ".journal").find("\"type\":\"sample\"") != std::string::npos;
}

}  // namespace

TEST_CASE("a weight that is no number ends the run with code 6 and no sample") {
  const TempFolder folder;
  const ModelCopy model("qwen2-tied", folder.path());
  put_nan(model, "model.layers.1.mlp.down_proj.weight");
  const std::string trace = folder / "out.h5";
  for (const auto& [ranks, grid] :
       std::vector<std::pair<int, Words>>{{1, {}}, {2, {"--tp", "2"}}, {2, {"--sp", "2"}}}) {
    CAPTURE(ranks);
    const Words words = eval(model.path(), trace) + grid + Words{"--fresh"};
    CommandOptions options;
    options.limit_s = 60;
    const CommandResult result = run_command(ranks == 1 ? tessera(words) : tessera_on(ranks, words), options);
    CAPTURE(result.err);
    CHECK(!result.timed_out);
    CHECK(result.code == 6);
    const std::vector<std::string> errors = lines_with(result.err, "NaN");
    REQUIRE(!errors.empty());
    if (ranks == 1) CHECK(errors.size() == 1);
    CHECK(errors.front().rfind("tessera: ", 0) == 0);
    CHECK(errors.front().find("weights") != std::string::npos);
    CHECK(!has_sample(trace));
    CHECK(!fs::exists(trace));
    CHECK(all_gone(folder.path(), 15));
  }
}

TEST_CASE("one rank's bad file ends the job with that rank's message and code") {
  const TempFolder folder;
  const ModelCopy good("qwen2-tied", folder.path());
  const std::string spoilt = folder / "spoilt";
  fs::create_directory(spoilt);
  const ModelCopy bad("qwen2-tied", spoilt);
  fs::remove(bad / "model.safetensors");
  const std::string trace = folder / "out.h5";
  for (const int culprit : {0, 1}) {
    CAPTURE(culprit);
    const Words words =
        in_folders(culprit == 0 ? spoilt : folder.path(), culprit == 1 ? spoilt : folder.path(),
                   eval("qwen2-tied", trace) + Words{"--tp", "2"});
    CommandOptions options;
    options.limit_s = 60;
    const CommandResult result = run_command(words, options);
    CAPTURE(result.err);
    CHECK(!result.timed_out);
    CHECK(result.code == 3);
    const std::vector<std::string> errors = lines_with(result.err, "tessera: ");
    REQUIRE(errors.size() == 1);
    CHECK(errors.front().find("tessera: rank " + std::to_string(culprit) + " (") == 0);
    CHECK(errors.front().find("model.safetensors") != std::string::npos);
    CHECK(!fs::exists(trace));
    CHECK(!fs::exists(trace + ".journal"));
    CHECK(all_gone(folder.path(), 15));
  }
}

// Replicas meet only at the queue: one that fails must not leave the others waiting.
TEST_CASE("a replica that fails by itself in its work ends the job with its message and code") {
  const TempFolder folder;
  const ModelCopy good("qwen2-tied", folder.path());
  const std::string spoilt = folder / "spoilt";
  fs::create_directory(spoilt);
  const ModelCopy bad("qwen2-tied", spoilt);
  put_nan(bad, "model.layers.0.self_attn.q_proj.weight");
  for (const int culprit : {0, 1}) {
    CAPTURE(culprit);
    const std::string trace = folder / ("out" + std::to_string(culprit) + ".h5");
    const Words words =
        in_folders(culprit == 0 ? spoilt : folder.path(), culprit == 1 ? spoilt : folder.path(),
                   eval("qwen2-tied", trace) + Words{"--dp", "2"});
    CommandOptions options;
    options.limit_s = 60;
    const CommandResult result = run_command(words, options);
    CAPTURE(result.err);
    CHECK(!result.timed_out);
    CHECK(result.code == 6);
    const std::vector<std::string> errors = lines_with(result.err, "NaN");
    REQUIRE(errors.size() == 1);
    CHECK(errors.front().find("tessera: rank " + std::to_string(culprit) + " (") == 0);
    CHECK(all_gone(folder.path(), 15));
  }
}

TEST_CASE("a rank that was given options it does not know is named, and none starts") {
  const TempFolder folder;
  const ModelCopy model("qwen2-tied", folder.path());
  const std::string trace = folder / "out.h5";
  const Words words = mpirun() + Words{"-np", "1"} + tessera(eval(model.path(), trace) + Words{"--tp", "2"}) +
                      Words{":", "-np", "1"} +
                      tessera(eval(model.path(), trace) + Words{"--tp", "2", "--nonsense"});
  CommandOptions options;
  options.limit_s = 60;
  const CommandResult result = run_command(words, options);
  CAPTURE(result.err);
  CHECK(!result.timed_out);
  CHECK(result.code == 2);
  const std::vector<std::string> errors = lines_with(result.err, "--nonsense");
  REQUIRE(errors.size() == 1);
  CHECK(errors.front().find("tessera: rank 1 (") == 0);
  CHECK(!fs::exists(trace + ".journal"));
  CHECK(all_gone(folder.path(), 15));
}

TEST_CASE("ranks that differ in what must be the same do not start, and the field is named") {
  const TempFolder folder;
  const ModelCopy model("qwen2-tied", folder.path());
  const std::string trace = folder / "out.h5";
  const Words common = eval(model.path(), trace) + Words{"--tp", "2"};
  const Words set = {"env", "OPENBLAS_CORETYPE=Haswell"};
  struct Case {
    Words of_rank_1;
    std::string said;
  };
  for (const Case& c :
       {Case{tessera(common + Words{"--seed", "7"}), "--seed 7 on rank 1"},
        Case{set + tessera(common), "OPENBLAS_CORETYPE (not set) on rank 0, Haswell on rank 1"}}) {
    CommandOptions options;
    options.limit_s = 60;
    const CommandResult result = run_command(
        mpirun() + Words{"-np", "1"} + tessera(common) + Words{":", "-np", "1"} + c.of_rank_1, options);
    CAPTURE(result.err);
    CHECK(!result.timed_out);
    CHECK(result.code == 2);
    const std::vector<std::string> errors = lines_with(result.err, "tessera: ");
    REQUIRE(errors.size() == 1);
    CHECK(errors.front().find("the ranks differ in what must be the same: ") != std::string::npos);
    CHECK(errors.front().find(c.said) != std::string::npos);
    CHECK(!fs::exists(trace + ".journal"));
    CHECK(all_gone(folder.path(), 15));
  }
}

}  // namespace tessera::test
