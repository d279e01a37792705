// Options, places and machines that a run cannot have are refused before any work, and nothing is left
// behind.
#include <doctest/doctest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/command/model_copy.hpp"
#include "tests/command/refusal.hpp"

namespace tessera::test {

namespace fs = std::filesystem;

TEST_CASE("bad options are refused") {
  const TempFolder folder;
  const ModelCopy model(kQwen, folder.path());
  const ModelCopy yarn(kSharded, folder.path());
  const ModelCopy llama(kLlama, folder.path());
  fs::create_directory(folder / "results");
  const std::string trace = folder / "results/out.h5";
  const Words good = eval(model.path(), trace);
  const auto file = [&](const char* name, const std::string& toml) {
    write_file(folder / name, toml);
    return Words{"--config", folder / name};
  };
  const auto without = [&](const std::string& option) {
    Words words = good;
    const auto found = std::find(words.begin(), words.end(), option);
    words.erase(found, found + 2);
    return words;
  };
  struct BadOptions {
    std::string name;
    Words words;
    std::vector<std::string> says;
  };
  const std::vector<BadOptions> cases = {
      {"no command", {}, {"no command"}},
      {"unknown command", {"evaluate"}, {"evaluate", "eval"}},
      {"unknown option", good + Words{"--lenght", "5"}, {"--lenght", "--length"}},
      {"stray word", good + Words{"more"}, {"more"}},
      {"option without its value", good + Words{"--seed"}, {"--seed"}},
      {"option twice", good + Words{"--length", "4096"}, {"--length", "1800", "4096"}},
      {"no model", without("--model"), {"--model"}},
      {"no task", without("--task"), {"--task"}},
      {"no length", without("--length"), {"--length"}},
      {"no trace", without("--trace"), {"--trace"}},
      {"unknown task", with(good, "--task", "ruler_nia"), {"--task", "ruler_nia", "ruler_niah"}},
      {"task twice", good + Words{"--task", "ruler_niah"}, {"--task", "ruler_niah"}},
      {"length as text", with(good, "--length", "long"), {"--length", "long"}},
      {"length of zero", with(good, "--length", "0"), {"--length", "0"}},
      {"length beyond 64 bits", with(good, "--length", "99999999999999999999"), {"--length"}},
      {"negative samples", with(good, "--samples", "-1"), {"--samples", "-1"}},
      {"fractional samples", with(good, "--samples", "1.5"), {"--samples", "1.5"}},
      {"negative seed", good + Words{"--seed", "-7"}, {"--seed", "-7"}},
      {"batch of zero", good + Words{"--batch", "0"}, {"--batch", "0"}},
      {"threads without end", with(good, "--threads", "100000"), {"--threads", "100000"}},
      {"unknown dtype", good + Words{"--dtype", "f33"}, {"--dtype", "f33"}},
      {"unknown KV dtype", good + Words{"--kv-dtype", "int3"}, {"--kv-dtype", "int3"}},
      {"unknown weights dtype", good + Words{"--weights-dtype", "f64"}, {"--weights-dtype", "f64"}},
      {"unknown weights", good + Words{"--weights", "random:x"}, {"--weights", "random:x"}},
      {"unknown prefill method", good + Words{"--prefill", "magic"}, {"--prefill", "magic"}},
      {"unknown decode method", good + Words{"--decode", "magic"}, {"--decode", "magic"}},
      {"unknown parameter of a method",
       good + Words{"--decode", "quest", "--set", "quest.token=64"},
       {"--set quest.token", "quest.tokens"}},
      {"parameter of a method that is not used",
       good + Words{"--decode", "quest", "--set", "snapkv.tokens=64"},
       {"--set snapkv.tokens=64", "change nothing"}},
      {"parameter of a method out of range",
       good + Words{"--decode", "snapkv", "--set", "snapkv.pool=4"},
       {"--set snapkv.pool", "4", "odd"}},
      {"native budget and target",
       good + Words{"--decode", "quest", "--set", "quest.tokens=64", "--decode-sparsity", "0.9"},
       {"--set quest.tokens", "--decode-sparsity 0.9"}},
      {"study budget and target",
       good + Words{"--decode", "quest", "--budget", "study:10x", "--decode-sparsity", "0.9"},
       {"--budget study:10x", "--decode-sparsity 0.9"}},
      {"study budget of another length",
       good + Words{"--decode", "quest", "--budget", "study:10x"},
       {"--budget study", "1800", "16384"}},
      {"study budget of a method without one",
       good + Words{"--prefill", "xattention", "--budget", "study:10x"},
       {"--budget study", "xattention"}},
      {"no budget", good + Words{"--decode", "quest", "--budget", "10x"}, {"--budget", "10x", "study:K"}},
      {"target of dense", good + Words{"--prefill-sparsity", "0.5"}, {"--prefill-sparsity 0.5", "dense"}},
      {"target of 1",
       good + Words{"--decode", "quest", "--decode-sparsity", "1"},
       {"--decode-sparsity", "1"}},
      {"target that nothing solves",
       good + Words{"--decode", "topp_pages", "--decode-sparsity", "0.9"},
       {"--decode-sparsity 0.9", "topp_pages"}},
      {"dense layer beyond the model",
       good + Words{"--decode", "quest", "--dense-layers", "0,3"},
       {"--dense-layers", "3", "from 0 to 2"}},
      {"all layers dense",
       good + Words{"--decode", "quest", "--dense-layers", "0-2"},
       {"--dense-layers", "no layer is left"}},
      {"unknown exchange", good + Words{"--exchange", "all"}, {"--exchange", "all", "gather"}},
      {"diagnosis of a sample beyond the run",
       good + Words{"--decode", "quest", "--diagnose", "0,1"},
       {"--diagnose", "1", "--samples 1"}},
      {"diagnosis of a dense run", good + Words{"--diagnose", "0"}, {"--diagnose 0", "dense"}},
      {"selections of a dense run",
       good + Words{"--dump-selections", folder / "dump"},
       {"--dump-selections", "dense"}},
      {"selections into a file",
       good + Words{"--decode", "quest", "--dump-selections", model / "config.json"},
       {"--dump-selections", "config.json", "folder"}},
      {"unknown rope", good + Words{"--rope", "ntk"}, {"--rope", "ntk"}},
      {"rope factor below 1", good + Words{"--rope", "yarn:0.5"}, {"--rope", "0.5"}},
      {"unknown prompt style", good + Words{"--prompt-style", "long"}, {"--prompt-style", "long"}},
      {"device cuda", good + Words{"--device", "cuda"}, {"--device", "cuda", "cpu"}},
      {"another type of weights on a GPU",
       good + Words{"--device", "cuda", "--weights-dtype", "f32"},
       {"--weights-dtype", "bf16"}},
      {"unknown device", good + Words{"--device", "tpu"}, {"--device", "tpu"}},
      {"unknown parameter",
       good + Words{"--set", "ruler_niah.keys=4"},
       {"--set", "ruler_niah.keys", "ruler_niah.queries"}},
      {"parameter out of range", good + Words{"--set", "ruler_niah.queries=0"}, {"ruler_niah.queries", "0"}},
      {"parameter without a value",
       good + Words{"--set", "ruler_niah.queries"},
       {"--set", "ruler_niah.queries"}},
      {"bad duration", good + Words{"--max-time", "soon"}, {"--max-time", "soon"}},
      {"tp beyond the ranks", good + Words{"--tp", "2"}, {"--tp 2", "number of ranks, 1"}},
      {"sp beyond the ranks", good + Words{"--sp", "3"}, {"--sp 3", "number of ranks, 1"}},
      {"grid unlike the ranks",
       good + Words{"--tp", "2", "--sp", "2", "--dp", "2"},
       {"--tp 2", "--sp 2", "--dp 2", "1"}},
      {"too short for the task", with(good, "--length", "64"), {"--length", "64", "ruler_niah"}},
      {"beyond the model",
       with(with(good, "--model", llama.path()), "--length", "4093"),
       {"--length", "4097", "4096"}},
      {"beyond the model under its rope",
       with(with(good, "--model", yarn.path()), "--length", "3000"),
       {"--length", "3004", "2048"}},
      {"beyond the model with its output",
       with(with(good, "--model", llama.path()), "--max-output-tokens", "4000"),
       {"--max-output-tokens", "5800", "4096"}},
      {"no such configuration", good + Words{"--config", folder / "none.toml"}, {"--config", "none.toml"}},
      {"configuration is a folder", good + Words{"--config", folder.path()}, {"--config", folder.path()}},
      {"configuration is no TOML", good + file("bad.toml", "seed = \n"), {"bad.toml:1", "TOML"}},
      {"unknown key in the configuration",
       good + file("key.toml", "sed = 3\n"),
       {"key.toml:1", "sed", "seed"}},
      {"wrong type in the configuration",
       good + file("type.toml", "\nseed = \"three\"\n"),
       {"type.toml:2", "seed"}},
      {"value out of range in the configuration",
       good + file("range.toml", "batch = 0\n"),
       {"range.toml:1", "batch", "0"}},
      {"configuration within a configuration",
       good + file("twice.toml", "config = \"x\"\n"),
       {"twice.toml:1", "config"}},
      {"trace export to nowhere", {"trace", "export", trace, "--table", "sample"}, {"--table", "sample"}},
  };
  for (const BadOptions& bad : cases) {
    CAPTURE(bad.name);
    check_refused(run_command(tessera(bad.words)), 2, bad.says);
    CHECK(is_empty(folder / "results"));
  }
}

TEST_CASE("a refused command is refused on any number of ranks with the same code") {
  const TempFolder folder;
  const ModelCopy model(kQwen, folder.path());
  fs::create_directory(folder / "results");
  const Words good = eval(model.path(), folder / "results/out.h5");
  struct Bad {
    int ranks;
    Words words;
    int code;
    std::vector<std::string> says;
  };
  for (const Bad& bad : std::vector<Bad>{
           {3, good + Words{"--nonsense"}, 2, {"--nonsense"}},
           {2, good + Words{"--tp", "3"}, 2, {"--tp 3", "number of ranks, 2"}},
           {3, good + Words{"--tp", "3"}, 2, {"--tp 3", "8 query heads"}},
           {3, good + Words{"--tp", "2"}, 2, {"--tp 2", "number of ranks, 3"}},
           {2, with(good, "--length", "64") + Words{"--sp", "2"}, 2, {"--length", "64"}},
           {2, with(good, "--model", folder / "nowhere") + Words{"--tp", "2"}, 3, {"nowhere"}},
           {2, with(good, "--trace", folder / "nowhere/out.h5") + Words{"--tp", "2"}, 4, {"nowhere/out.h5"}},
       }) {
    CAPTURE(bad.ranks);
    CAPTURE(bad.says.front());
    const CommandResult result = run_command(tessera_on(bad.ranks, bad.words));
    CAPTURE(result.err);
    CHECK(result.code == bad.code);
    std::vector<std::string> ours;
    for (const std::string& line : lines_of(result.err)) {
      if (line.rfind("tessera: ", 0) == 0) ours.push_back(line);
    }
    REQUIRE(ours.size() == 1);
    for (const std::string& part : bad.says) CHECK(ours.front().find(part) != std::string::npos);
    CHECK(is_empty(folder / "results"));
    CHECK(all_gone(folder.path(), 15));
  }
}

TEST_CASE("a place where no trace can be is refused") {
  const TempFolder folder;
  const ModelCopy model(kQwen, folder.path());
  write_file(folder / "plain", "");
  fs::create_directory(folder / "results");
  fs::create_directory(folder / "results/taken.h5");
  for (const std::string& trace :
       {folder / "nowhere/out.h5", folder / "plain/out.h5", std::string("/proc/out.h5")}) {
    CAPTURE(trace);
    check_refused(run_command(tessera(eval(model.path(), trace))), 4, {trace});
  }
  SUBCASE("a folder is where the trace should be") {
    check_refused(run_command(tessera(eval(model.path(), folder / "results/taken.h5"))), 2,
                  {"--trace", "results/taken.h5", "folder"});
    CHECK(!fs::exists(folder / "results/taken.h5.journal"));
  }
  SUBCASE("a log folder that cannot be") {
    check_refused(run_command(tessera(eval(model.path(), folder / "results/out.h5") +
                                      Words{"--log-dir", folder / "plain/logs"})),
                  4, {"plain/logs"});
    CHECK(!fs::exists(folder / "results/out.h5.journal"));
  }
}

// A limit on the size of files stands for a disk that fills up: the write that passes it fails.
TEST_CASE("a full disk ends the run with code 4 and leaves no half-made file") {
  const TempFolder folder;
  const ModelCopy model(kQwen, folder.path());
  fs::create_directory(folder / "results");
  const std::string trace = folder / "results/out.h5";
  CommandOptions full;
  SUBCASE("from the first byte") {
    full.most_file_bytes = 0;
    check_refused(run_command(tessera(eval(model.path(), trace)), full), 4, {trace + ".journal"});
    CHECK(is_empty(folder / "results"));
  }
  SUBCASE("in the first sample") {
    full.most_file_bytes = 3000;
    const CommandResult result = run_command(tessera(eval(model.path(), trace)), full);
    CAPTURE(result.err);
    CHECK(result.code == 4);
    CHECK(result.err.find(trace + ".journal") != std::string::npos);
    CHECK(!fs::exists(trace));
  }
  SUBCASE("in the trace, when the journal is whole") {
    full.most_file_bytes = 50000;
    const CommandResult result = run_command(tessera(eval(model.path(), trace)), full);
    CAPTURE(result.err);
    CHECK(result.code == 4);
    CHECK(result.err.find(trace) != std::string::npos);
    for (const auto& entry : fs::directory_iterator(folder / "results")) {
      CHECK(entry.path().filename() == "out.h5.journal");
    }
    // With room again the sample that was acknowledged is there, and nothing is computed twice.
    const CommandResult again = run_command(tessera(eval(model.path(), trace)));
    CAPTURE(again.err);
    CHECK(again.code == 0);
    CHECK(fs::exists(trace));
  }
}

TEST_CASE("what cannot fit in memory is refused before it is allocated") {
  const TempFolder folder;
  const ModelCopy model(kQwen, folder.path());
  model.edit_json("config.json", [](nlohmann::json& config) { config["max_position_embeddings"] = 1 << 26; });
  fs::create_directory(folder / "results");
  const Words good =
      eval(model.path(), folder / "results/out.h5") + Words{"--batch", "4096", "--rope", "config"};
  for (const Words& words :
       {with(good, "--max-output-tokens", "16000000"), with(good, "--length", "16000000")}) {
    check_refused(run_command(tessera(words)), 4, {"memory", "GiB", "--batch", "--length"});
    CHECK(is_empty(folder / "results"));
  }
}

TEST_CASE("a world of one under a launcher that started several is refused") {
  const TempFolder folder;
  const ModelCopy model(kQwen, folder.path());
  fs::create_directory(folder / "results");
  CommandOptions slurm;
  slurm.environment = {{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}, {"SLURM_STEP_NUM_TASKS", "4"}};
  check_refused(run_command(tessera(eval(model.path(), folder / "results/out.h5")), slurm), 2,
                {"Slurm", "4", "mpirun"});
  CHECK(is_empty(folder / "results"));
}

}  // namespace tessera::test
