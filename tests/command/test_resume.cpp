// One run in several attempts: the journal keeps what was done, whatever stopped it and on whatever grid it
// goes on.
#include <doctest/doctest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "tests/command/model_copy.hpp"
#include "tests/command/run_command.hpp"

namespace tessera::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const std::string kModel = std::string(TESSERA_FIXTURES) + "/qwen2-tied";

// A run that takes no time: 3 samples of a short prompt and a short answer.
struct Run {
  std::string trace;
  std::string model = kModel;
  int samples = 3;
  int output = 6;
  int length = 1500;
  Words more = {};

  Words words() const {
    return Words{"eval",
                 "--model",
                 model,
                 "--task",
                 "ruler_niah",
                 "--threads",
                 "1",
                 "--trace",
                 trace,
                 "--samples",
                 std::to_string(samples),
                 "--max-output-tokens",
                 std::to_string(output),
                 "--length",
                 std::to_string(length)} +
           more;
  }
};

void check_done(const CommandResult& result) {
  CAPTURE(result.err);
  CHECK(!result.timed_out);
  REQUIRE(result.code == 0);
}

std::vector<json> journal_lines(const std::string& trace, const std::string& type) {
  std::vector<json> found;
  for (const std::string& line : lines_of(read_file(trace + ".journal"))) {
    const std::string needle = "\"type\":\"" + type + "\"";
    if (line.find(needle) == std::string::npos) continue;
    found.push_back(json::parse(line));
  }
  return found;
}

// Sample → what the model answered, from `tessera trace export`.
std::map<int, std::string> answers_of(const std::string& trace) {
  const CommandResult result =
      run_command(tessera({"trace", "export", trace, "--table", "samples", "--format", "jsonl"}));
  CAPTURE(result.err);
  REQUIRE(result.code == 0);
  std::map<int, std::string> answers;
  for (const std::string& line : lines_of(result.out)) {
    const json row = json::parse(line);
    const bool is_new =
        answers.emplace(row.at("sample").get<int>(), row.at("prediction").get<std::string>()).second;
    CHECK(is_new);
  }
  return answers;
}

void check_trace(const std::string& trace, int samples, int attempts) {
  CAPTURE(trace);
  CHECK(answers_of(trace).size() == static_cast<std::size_t>(samples));
  CHECK(journal_lines(trace, "sample").size() == static_cast<std::size_t>(samples));
  CHECK(journal_lines(trace, "attempt").size() == static_cast<std::size_t>(attempts));
  const CommandResult checked = run_command(tessera({"trace", "check", trace}));
  CAPTURE(checked.err);
  CHECK(checked.code == 0);
}

// Waits until the journal holds so many samples; false when the command ended or took too long before.
bool wait_for_samples(RunningCommand& command, const std::string& trace, std::size_t count) {
  for (int i = 0; i < 3000 && command.running(); ++i) {
    if (fs::exists(trace + ".journal") && journal_lines(trace, "attempt").size() > 0 &&
        journal_lines(trace, "sample").size() >= count) {
      return true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

// Long enough to be met while it runs, however fast the machine is; stopped long before its end.
Run long_run(const std::string& trace) {
  Run run{trace};
  run.samples = 2000;
  run.output = 64;
  return run;
}

}  // namespace

TEST_CASE("more samples append, the same again does nothing") {
  const TempFolder folder;
  Run run{folder / "out.h5"};
  check_done(run_command(tessera(run.words())));
  check_trace(run.trace, 3, 1);
  const std::string three = read_file(run.trace + ".journal");

  run.samples = 5;
  check_done(run_command(tessera(run.words())));
  check_trace(run.trace, 5, 2);
  const std::string five = read_file(run.trace + ".journal");
  CHECK(five.compare(0, three.size(), three) == 0);

  const CommandResult again = run_command(tessera(run.words()));
  check_done(again);
  CHECK(again.out.find("5 samples") != std::string::npos);
  CHECK(read_file(run.trace + ".journal") == five);

  run.samples = 2;  // fewer than there are: nothing is left to do, and nothing is lost
  check_done(run_command(tessera(run.words())));
  CHECK(read_file(run.trace + ".journal") == five);
  check_trace(run.trace, 5, 2);
}

TEST_CASE("a run goes on on other grids, and answers as on one rank") {
  const TempFolder folder;
  Run whole{folder / "whole.h5"};
  whole.samples = 8;
  whole.output = 24;
  check_done(run_command(tessera(whole.words())));
  const std::map<int, std::string> expected = answers_of(whole.trace);
  REQUIRE(expected.size() == 8);

  struct Step {
    int ranks;
    Words grid;
  };
  const std::vector<Step> steps = {{2, {"--tp", "2"}},
                                   {2, {"--sp", "2"}},
                                   {2, {"--dp", "2"}},
                                   {1, {"--batch", "3"}},
                                   {4, {"--tp", "2", "--sp", "2"}}};
  SUBCASE("each grid from the start") {
    for (const Step& step : steps) {
      CAPTURE(step.grid.front());
      Run run = whole;
      run.trace = folder / "grid.h5";
      run.samples = 5;
      run.more = step.grid + Words{"--fresh"};
      check_done(run_command(tessera_on(step.ranks, run.words())));
      std::map<int, std::string> first(expected.begin(), std::next(expected.begin(), 5));
      CHECK(answers_of(run.trace) == first);
    }
  }
  SUBCASE("one grid after another") {
    Run run = whole;
    run.trace = folder / "steps.h5";
    run.samples = 2;
    check_done(run_command(tessera(run.words())));
    for (const Step& step : steps) {
      ++run.samples;
      run.more = step.grid;
      check_done(run_command(tessera_on(step.ranks, run.words())));
    }
    check_trace(run.trace, 7, 6);
    const std::map<int, std::string> first(expected.begin(), std::next(expected.begin(), 7));
    CHECK(answers_of(run.trace) == first);
  }
}

TEST_CASE("another key is refused, and names the field and both values") {
  const TempFolder folder;
  const Run run{folder / "out.h5"};
  check_done(run_command(tessera(run.words())));
  const std::string journal = read_file(run.trace + ".journal");
  const std::string trace = read_file(run.trace);

  Run longer = run, talkative = run, other_seed = run, other_weights = run, compact = run, asks_less = run;
  longer.length = 1600;
  talkative.output = 7;
  other_seed.more = {"--seed", "44"};
  other_weights.more = {"--weights", "random:5"};
  compact.more = {"--prompt-style", "compact"};
  asks_less.more = {"--set", "ruler_niah.queries=2"};
  struct Other {
    Run run;
    std::vector<std::string> says;
  };
  for (const Other& other :
       {Other{longer, {"length", "1500", "1600"}},
        Other{talkative, {"max_output_tokens", "6 there", "7 here"}}, Other{other_seed, {"seed", "43", "44"}},
        Other{other_weights, {"weights", "random:5"}}, Other{compact, {"prompt_style", "full", "compact"}},
        Other{asks_less, {"task_settings", "queries\":4", "queries\":2"}}}) {
    CAPTURE(other.says.front());
    const CommandResult result = run_command(tessera(other.run.words()));
    CAPTURE(result.err);
    CHECK(result.code == 2);
    CHECK(lines_of(result.err).size() == 1);
    CHECK(result.err.find("out.h5.journal") != std::string::npos);
    CHECK(result.err.find("--fresh") != std::string::npos);
    for (const std::string& part : other.says) CHECK(result.err.find(part) != std::string::npos);
    CHECK(read_file(run.trace + ".journal") == journal);
    CHECK(read_file(run.trace) == trace);
  }

  other_seed.more.push_back("--fresh");
  other_seed.samples = 2;
  check_done(run_command(tessera(other_seed.words())));
  check_trace(run.trace, 2, 1);
}

TEST_CASE("weights that changed under the same name are another run") {
  const TempFolder folder;
  const ModelCopy model("qwen2-tied", folder.path());
  Run run{folder / "out.h5"};
  run.model = model.path();
  check_done(run_command(tessera(run.words())));
  model.edit_text("model.safetensors",
                  [](std::string& bytes) { bytes.back() = static_cast<char>(bytes.back() ^ 1); });
  const CommandResult result = run_command(tessera(run.words()));
  CAPTURE(result.err);
  CHECK(result.code == 2);
  CHECK(result.err.find("weights") != std::string::npos);
}

TEST_CASE("a trace that is gone is made again from its journal") {
  const TempFolder folder;
  const Run run{folder / "out.h5"};
  check_done(run_command(tessera(run.words())));
  const std::map<int, std::string> answers = answers_of(run.trace);
  const std::string journal = read_file(run.trace + ".journal");
  SUBCASE("by trace rebuild") {
    REQUIRE(fs::remove(run.trace));
    check_done(run_command(tessera({"trace", "rebuild", run.trace})));
  }
  SUBCASE("by the same command") {
    REQUIRE(fs::remove(run.trace));
    check_done(run_command(tessera(run.words())));
  }
  SUBCASE("over one that is damaged") {
    write_file(run.trace, read_file(run.trace).substr(0, 5000));
    CHECK(run_command(tessera({"trace", "check", run.trace})).code == 3);
    check_done(run_command(tessera(run.words())));
  }
  CHECK(answers_of(run.trace) == answers);
  CHECK(read_file(run.trace + ".journal") == journal);
  check_trace(run.trace, 3, 1);
}

TEST_CASE("a journal whose last line was cut goes on; one damaged within is refused") {
  const TempFolder folder;
  const Run run{folder / "out.h5"};
  check_done(run_command(tessera(run.words())));
  const std::map<int, std::string> answers = answers_of(run.trace);
  std::string journal = read_file(run.trace + ".journal");
  SUBCASE("cut") {
    const std::size_t last_sample = journal.rfind("\"type\":\"sample\"");
    write_file(run.trace + ".journal", journal.substr(0, last_sample - 40));
    const CommandResult result = run_command(tessera(run.words()));
    check_done(result);
    CHECK(result.err.find("incomplete last line") != std::string::npos);
    CHECK(answers_of(run.trace) == answers);
    check_trace(run.trace, 3, 2);
  }
  SUBCASE("damaged") {
    journal[journal.find("\"type\":\"sample\"") - 40] ^= 1;
    write_file(run.trace + ".journal", journal);
    const CommandResult result = run_command(tessera(run.words()));
    CAPTURE(result.err);
    CHECK(result.code == 3);
    CHECK(lines_of(result.err).size() == 1);
    CHECK(result.err.find("out.h5.journal") != std::string::npos);
    CHECK(read_file(run.trace + ".journal") == journal);
  }
}

TEST_CASE("a second writer is refused while the first goes on") {
  const TempFolder folder;
  const Run run = long_run(folder / "out.h5");
  RunningCommand first(tessera(run.words()));
  REQUIRE(wait_for_samples(first, run.trace, 1));
  for (const Words& more : {Words{}, Words{"--fresh"}}) {
    const CommandResult second = run_command(tessera(run.words() + more));
    CAPTURE(second.err);
    CHECK(second.code == 2);
    CHECK(lines_of(second.err).size() == 1);
    CHECK(second.err.find("another process is writing") != std::string::npos);
    CHECK(second.err.find("out.h5.journal") != std::string::npos);
  }
  CHECK(first.running());
  const std::size_t before = journal_lines(run.trace, "sample").size();
  CHECK(wait_for_samples(first, run.trace, before + 1));
  first.signal(SIGTERM);
  CHECK(first.wait().code == 75);
  CHECK(run_command(tessera({"trace", "check", run.trace})).code == 0);
}

TEST_CASE("a run that is asked to stop ends with 75, and its command repeated goes on") {
  const TempFolder folder;
  Run run = long_run(folder / "out.h5");
  CommandResult stopped;
  SUBCASE("by SIGTERM, SIGUSR1 or SIGINT") {
    for (const int number : {SIGTERM, SIGUSR1, SIGINT}) {
      CAPTURE(number);
      const std::size_t before = fs::exists(run.trace) ? journal_lines(run.trace, "sample").size() : 0;
      RunningCommand command(tessera(run.words()));
      REQUIRE(wait_for_samples(command, run.trace, before + 1));
      command.signal(number);
      stopped = command.wait();
      CAPTURE(stopped.err);
      CHECK(stopped.code == 75);
    }
  }
  SUBCASE("by --max-time") {
    stopped = run_command(tessera(run.words() + Words{"--max-time", "1"}));
    CHECK(stopped.code == 75);
  }
  SUBCASE("by --max-time on two replicas") {
    stopped = run_command(tessera_on(2, run.words() + Words{"--max-time", "1", "--dp", "2"}));
    CHECK(stopped.code == 75);
    CHECK(all_gone(folder.path(), 15));
  }
  SUBCASE("by --max-time on two ranks of one replica") {
    stopped = run_command(tessera_on(2, run.words() + Words{"--max-time", "1", "--tp", "2"}));
    CHECK(stopped.code == 75);
    CHECK(all_gone(folder.path(), 15));
  }
  // The trace was brought up to date. A run whose time was up before its first attempt leaves nothing.
  const bool began = fs::exists(run.trace + ".journal");
  const std::map<int, std::string> before = began ? answers_of(run.trace) : std::map<int, std::string>{};
  const auto done = static_cast<int>(before.size());
  CHECK(fs::exists(run.trace) == began);
  if (began) CHECK(journal_lines(run.trace, "sample").size() == before.size());
  REQUIRE(done < run.samples);
  // The longest prompts went first, so the samples done are spread: go on as far as two more.
  run.samples = 0;
  for (int missing = 0; missing < 2; ++run.samples) missing += before.count(run.samples) == 0;
  const auto attempts = began ? static_cast<int>(journal_lines(run.trace, "attempt").size()) : 0;
  check_done(run_command(tessera(run.words())));
  check_trace(run.trace, done + 2, attempts + 1);
  const std::map<int, std::string> after = answers_of(run.trace);
  for (const auto& [sample, answer] : before) CHECK(after.at(sample) == answer);
}

}  // namespace tessera::test
