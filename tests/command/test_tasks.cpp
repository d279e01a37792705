// `tessera tasks`, several tasks in one run, and samples from files, as a user meets them.
#include <doctest/doctest.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/command/model_copy.hpp"
#include "tests/command/refusal.hpp"

namespace tessera::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const std::string kTasksModel = std::string(TESSERA_FIXTURES) + "/qwen2-tied";
const std::string kQaFolder = std::string(TESSERA_FIXTURES) + "/qa";

CommandResult done(const CommandResult& result) {
  CAPTURE(result.err);
  CHECK(!result.timed_out);
  REQUIRE(result.code == 0);
  return result;
}

std::vector<json> json_lines(const std::string& text) {
  std::vector<json> lines;
  for (const std::string& line : lines_of(text)) lines.push_back(json::parse(line));
  return lines;
}

std::string text_of(const std::vector<json>& lines) {
  std::string text;
  for (const json& line : lines) text += line.dump() + "\n";
  return text;
}

// (task, sample) → its row in the trace.
using Rows = std::map<std::pair<std::string, int>, json>;

Rows rows_of(const std::string& trace) {
  Rows rows;
  const CommandResult result =
      done(run_command(tessera({"trace", "export", trace, "--table", "samples", "--format", "jsonl"})));
  for (const json& row : json_lines(result.out)) {
    CHECK(
        rows.emplace(std::pair(row.at("task").get<std::string>(), row.at("sample").get<int>()), row).second);
  }
  return rows;
}

const Words kQuick = {"--max-output-tokens", "4", "--threads", "1"};

}  // namespace

TEST_CASE("tasks list shows the tasks, their files and parameters") {
  const CommandResult result = done(run_command(tessera({"tasks", "list"})));
  for (const char* part : {"ruler_niah", "recall", "ruler_niah.queries=4", "qa_squad", "squad.json", "f1",
                           "qa_quality", "QuALITY.v1.0.1.htmlstripped.dev", "qa_toefl", "toeflqa.jsonl",
                           "qa_toefl.most_tokens=8172", "jsonl:FILE", "exact, f1, iou, keys"}) {
    CAPTURE(part);
    CHECK(result.out.find(part) != std::string::npos);
  }
}

TEST_CASE("several tasks in one run; generated samples give the same prompts, answers and scores") {
  const TempFolder folder;
  write_file(folder / "mine.jsonl",
             "{\"prompt\":\"Say yes.\",\"references\":[\"yes\"],\"metric\":\"f1\"}\n"
             "{\"prompt\":\"Say no.\",\"references\":\"no\",\"metric\":\"f1\"}\n");
  const std::string tasks = "ruler_niah,qa_squad,qa_toefl,jsonl:" + (folder / "mine.jsonl");
  const Words which = {"--task",    tasks, "--data", kQaFolder, "--length",       "1800",
                       "--samples", "3",   "--seed", "5",       "--prompt-style", "compact"};
  const std::string direct = folder / "direct.h5";
  const Words eval_words = Words{"eval", "--model", kTasksModel, "--trace", direct} + which + kQuick;
  const CommandResult first = done(run_command(tessera(eval_words)));
  // A line a task, the whole run, what was planned, the trace.
  const std::vector<std::string> lines = lines_of(first.out);
  REQUIRE(lines.size() == 7);
  CHECK(lines[0].rfind("ruler_niah 1800: recall 0.000 [0.000, 0.561] (95 %, Wilson), 3 samples", 0) == 0);
  CHECK(lines[1].rfind("qa_squad 1800: f1 ", 0) == 0);
  CHECK(lines[2].rfind("qa_toefl 1800: exact ", 0) == 0);
  CHECK(lines[3].rfind("jsonl:mine.jsonl 1800: f1 ", 0) == 0);
  CHECK(lines[3].find("2 samples") != std::string::npos);  // the file has no more
  CHECK(lines[4].rfind("4 tasks, 11 samples, ", 0) == 0);
  CHECK(lines[5].rfind("plan: memory of a rank: weights ", 0) == 0);
  const Rows rows = rows_of(direct);
  CHECK(rows.size() == 11);
  CHECK(done(run_command(tessera({"trace", "check", direct}))).code == 0);

  const Words generate = Words{"tasks", "generate", "--model", kTasksModel} + which;
  const std::string made = done(run_command(tessera(generate + Words{"--threads", "1"}))).out;
  CHECK(done(run_command(tessera(generate + Words{"--threads", "2"}))).out == made);
  const Words by_tokenizer =
      Words{"tasks", "generate", "--tokenizer", kTasksModel + "/tokenizer.json"} + which;
  CHECK(done(run_command(tessera(by_tokenizer))).out == made);
  const std::vector<json> made_lines = json_lines(made);
  REQUIRE(made_lines.size() == 11);
  for (const json& line : made_lines) {
    const json& row = rows.at({line.at("task"), line.at("sample")});
    CHECK(line.at("prompt_hash") == row.at("prompt_hash"));
    CHECK(line.at("tokens") == row.at("input_tokens"));
    CHECK(line.at("metric") == row.at("metric"));
    CHECK(line.at("length") == 1800);
    CHECK(line.at("seed") == 5);
    CHECK(line.at("prompt_style") == "compact");
    CHECK(line.at("metadata").is_object());
    std::string gold;
    for (const std::string text : line.at("gold")) gold += (gold.empty() ? "" : "\n") + text;
    CHECK(row.at("reference") == gold);
  }

  write_file(folder / "made.jsonl", made);
  for (int ranks : {1, 2}) {
    CAPTURE(ranks);
    const std::string again = folder / ("again" + std::to_string(ranks) + ".h5");
    const Words from =
        Words{"eval", "--model", kTasksModel, "--samples-from", folder / "made.jsonl", "--trace", again} +
        kQuick;
    done(run_command(ranks == 1 ? tessera(from) : tessera_on(ranks, from)));
    const Rows same = rows_of(again);
    REQUIRE(same.size() == rows.size());
    for (const auto& [id, row] : rows) {
      CAPTURE(id.first);
      for (const char* field : {"prompt_hash", "input_tokens", "length", "metric", "prediction", "parsed",
                                "score", "format_ok", "reference"}) {
        CHECK(same.at(id).at(field) == row.at(field));
      }
    }
  }
  const CommandResult points = done(run_command(
      tessera({"trace", "export", folder / "again1.h5", "--table", "points", "--format", "jsonl"})));
  for (const json& point : json_lines(points.out)) CHECK(point.at("seed") == 5);  // as the file says

  // More samples append, and no task gives more than its file has.
  done(run_command(tessera(with(eval_words, "--samples", "4"))));
  CHECK(rows_of(direct).size() == 14);
}

TEST_CASE("what a run reads is in its key") {
  const TempFolder folder;
  fs::create_directory(folder / "data");
  fs::copy_file(kQaFolder + "/toeflqa.jsonl", folder / "data/toeflqa.jsonl");
  const std::string line = "{\"prompt\":\"Say yes.\",\"references\":[\"yes\"],\"metric\":\"f1\"}\n";
  write_file(folder / "mine.jsonl", line);
  const Words words =
      Words{
          "eval",   "--model",       kTasksModel,      "--task", "qa_toefl,jsonl:" + (folder / "mine.jsonl"),
          "--data", folder / "data", "--length",       "1800",   "--samples",
          "1",      "--trace",       folder / "out.h5"} +
      kQuick;
  done(run_command(tessera(words)));
  done(run_command(tessera(words)));  // nothing changed: nothing to do
  write_file(folder / "mine.jsonl", line + line);
  check_refused(run_command(tessera(words)), 2, {"task_data", "jsonl:mine.jsonl", "there", "here"});
  write_file(folder / "mine.jsonl", line);
  const std::string data = read_file(folder / "data/toeflqa.jsonl");
  write_file(folder / "data/toeflqa.jsonl", data + "\n");
  check_refused(run_command(tessera(words)), 2, {"task_data", "qa_toefl", "there", "here"});
  write_file(folder / "data/toeflqa.jsonl", data);
  done(run_command(tessera(with(words, "--samples", "2"))));

  const CommandResult made = done(run_command(tessera({"tasks", "generate", "--model", kTasksModel, "--task",
                                                       "ruler_niah", "--length", "1500", "--samples", "1"})));
  write_file(folder / "made.jsonl", made.out);
  const Words from = Words{"eval",    "--model",         kTasksModel, "--samples-from", folder / "made.jsonl",
                           "--trace", folder / "from.h5"} +
                     kQuick;
  done(run_command(tessera(from)));
  json other = json::parse(made.out);
  other["prompt"] = "Another question.";
  write_file(folder / "made.jsonl", other.dump() + "\n");
  check_refused(run_command(tessera(from)), 2, {"task_data", "ruler_niah"});
}

TEST_CASE("tasks score: predictions of another engine, by hand and as eval scored them") {
  const TempFolder folder;
  const std::string gold =
      "{\"task\":\"qa_squad\",\"sample\":0,\"prompt\":\"p\",\"gold\":[\"the old mill\"]}\n"
      "{\"task\":\"qa_squad\",\"sample\":1,\"prompt\":\"p\",\"gold\":[\"1850\",\"in 1850\"]}\n"
      "{\"task\":\"qa_squad\",\"sample\":2,\"prompt\":\"p\",\"gold\":[\"x\"]}\n"
      "{\"task\":\"qa_toefl\",\"sample\":0,\"prompt\":\"p\",\"gold\":[\"B\",\"D\"]}\n"
      "{\"task\":\"jsonl:mine\",\"sample\":0,\"prompt\":\"p\",\"gold\":[\"a\",\"b\"],\"metric\":\"iou\"}\n"
      "{\"task\":\"ruler_niah\",\"sample\":0,\"prompt\":\"p\",\"gold\":[\"u\",\"v\",\"w\",\"z\"]}\n";
  const std::string predictions =
      "{\"task\":\"qa_squad\",\"sample\":1,\"prediction\":\"<answer>in May 1850</answer>\"}\n"  // {in may
                                                                                                // 1850}: 4/5
      "{\"task\":\"qa_squad\",\"sample\":0,\"prediction\":\"the old mill\"}\n"                  // no tags
      "{\"task\":\"qa_toefl\",\"sample\":0,\"prediction\":\"<answer>D and B</answer>\"}\n"
      "{\"task\":\"jsonl:mine\",\"sample\":0,\"prediction\":\"<answer>a, c</answer>\"}\n"  // 1 of 3
      "{\"task\":\"ruler_niah\",\"sample\":0,\"prediction\":\"<answer>u, v, x, "
      "z</answer>\",\"model\":\"m\"}\n";
  write_file(folder / "gold.jsonl", gold);
  write_file(folder / "predictions.jsonl", predictions);
  const Words score = {
      "tasks", "score", "--samples", folder / "gold.jsonl", "--output", folder / "scores.jsonl"};
  const CommandResult result = done(run_command(tessera(score + Words{folder / "predictions.jsonl"})));
  const std::vector<json> scores = json_lines(read_file(folder / "scores.jsonl"));
  REQUIRE(scores.size() == 5);
  const std::vector<double> by_hand = {0.8, 0, 1, 1.0 / 3, 0.75};
  for (std::size_t i = 0; i < 5; ++i)
    CHECK(scores[i].at("score").get<double>() == doctest::Approx(by_hand[i]));
  CHECK(scores[0].at("metric") == "f1");
  CHECK(scores[0].at("format_ok") == true);
  CHECK(scores[1].at("format_ok") == false);
  CHECK(scores[2].at("parsed") == "BD");
  CHECK(scores[4].at("metric") == "recall");
  const std::vector<std::string> table = lines_of(result.out);
  REQUIRE(table.size() == 5);
  CHECK(table[1].rfind("qa_squad", 0) == 0);
  for (const char* part : {"f1", " 2", "0.400", "Student's t"})
    CHECK(table[1].find(part) != std::string::npos);
  CHECK(table[1].back() == '1');  // sample 2 has no prediction
  CHECK(table[2].find("1.000") != std::string::npos);
  CHECK(table[2].find("Wilson") != std::string::npos);

  // Gold beside the prediction, and files one after the other.
  std::vector<json> joined;
  for (std::size_t i = 0; i < 2; ++i) {
    joined.push_back(json_lines(gold)[1 - i]);
    joined.back()["prediction"] = json_lines(predictions)[i].at("prediction");
  }
  write_file(folder / "a.jsonl", joined[0].dump());
  write_file(folder / "b.jsonl", joined[1].dump());
  done(run_command(tessera(
      {"tasks", "score", "--output", folder / "joined.jsonl", folder / "a.jsonl", folder / "b.jsonl"})));
  const std::vector<json> same = json_lines(read_file(folder / "joined.jsonl"));
  REQUIRE(same.size() == 2);
  CHECK(same[0] == scores[0]);
  CHECK(same[1] == scores[1]);

  // What eval answered, scored again from its trace.
  const Words which = {"--task", "ruler_niah,qa_squad", "--data", kQaFolder, "--length",
                       "1500",   "--samples",           "4"};
  const std::string trace = folder / "out.h5";
  done(run_command(tessera(Words{"eval", "--model", kTasksModel, "--trace", trace} + which + kQuick)));
  write_file(folder / "made.jsonl",
             done(run_command(tessera(Words{"tasks", "generate", "--model", kTasksModel} + which))).out);
  std::vector<json> answered;
  for (const auto& [id, row] : rows_of(trace)) answered.push_back(row);
  write_file(folder / "answered.jsonl", text_of(answered));
  done(run_command(tessera({"tasks", "score", "--samples", folder / "made.jsonl", "--output",
                            folder / "again.jsonl", folder / "answered.jsonl"})));
  const std::vector<json> again = json_lines(read_file(folder / "again.jsonl"));
  REQUIRE(again.size() == answered.size());
  for (std::size_t i = 0; i < again.size(); ++i) {
    for (const char* field : {"task", "sample", "score", "format_ok", "parsed", "metric"}) {
      CHECK(again[i].at(field) == answered[i].at(field));
    }
  }
}

TEST_CASE("tasks and files that do not fit are refused in one line") {
  const TempFolder folder;
  const ModelCopy plain(kQwen, folder.path());
  plain.edit_text("tokenizer.json",
                  [](std::string& text) { replace_text(text, "\"<|im_end|>\"", "\"<|im_fin|>\""); });
  fs::create_directory(folder / "results");
  fs::create_directory(folder / "empty");
  const std::string line = "{\"prompt\":\"p\",\"references\":[\"yes\"],\"metric\":\"f1\"}\n";
  write_file(folder / "mine.jsonl", line + "{\"prompt\":\"p\",\"references\":[],\"metric\":\"f1\"}\n");
  write_file(folder / "good.jsonl", line);
  const std::string made =
      "{\"task\":\"ruler_niah\",\"sample\":0,\"prompt\":\"p\",\"gold\":[\"a\"],\"length\":900";
  write_file(folder / "made.jsonl", made + "}\n");
  write_file(folder / "broken.jsonl", made + "\n");
  write_file(folder / "twice.jsonl", made + "}\n" + made + "}\n");
  const std::string prediction = "{\"task\":\"ruler_niah\",\"sample\":0,\"prediction\":\"x\"}\n";
  write_file(folder / "predictions.jsonl", prediction);
  write_file(folder / "two.jsonl", prediction + prediction);
  write_file(folder / "stray.jsonl", "{\"task\":\"ruler_niah\",\"sample\":8,\"prediction\":\"x\"}\n");
  write_file(folder / "number.jsonl", "{\"task\":\"ruler_niah\",\"sample\":0,\"prediction\":7}\n");

  const Words run = eval(kTasksModel, folder / "results/out.h5");
  const Words from = {"eval",
                      "--model",
                      kTasksModel,
                      "--trace",
                      folder / "results/out.h5",
                      "--samples-from",
                      folder / "made.jsonl"};
  const Words generate = {"tasks",  "generate",   "--model",  kTasksModel,
                          "--task", "ruler_niah", "--length", "1500"};
  const auto score = [&](const char* name) {
    return Words{"tasks", "score", "--samples", folder / "made.jsonl", folder / name};
  };
  struct Bad {
    std::string name;
    Words words;
    int code;
    std::vector<std::string> says;
  };
  for (const Bad& bad : std::vector<Bad>{
           {"no data", with(run, "--task", "qa_squad"), 2, {"--data", "qa_squad", "squad.json"}},
           {"data for nothing", run + Words{"--data", kQaFolder}, 2, {"--data", kQaFolder}},
           {"no such folder",
            with(run, "--task", "qa_squad") + Words{"--data", folder / "nowhere"},
            3,
            {"nowhere", "--data"}},
           {"no such file",
            with(run, "--task", "qa_toefl") + Words{"--data", folder / "empty"},
            3,
            {"empty", "toeflqa.jsonl"}},
           {"too few questions",
            with(with(run, "--task", "qa_toefl"), "--samples", "97") + Words{"--data", kQaFolder},
            2,
            {"--samples", "96 questions"}},
           {"no file named", with(run, "--task", "jsonl:"), 2, {"--task", "jsonl:FILE"}},
           {"own file absent",
            with(run, "--task", "jsonl:" + (folder / "none.jsonl")),
            3,
            {"none.jsonl", "cannot open"}},
           {"own file wrong",
            with(run, "--task", "jsonl:" + (folder / "mine.jsonl")),
            3,
            {"mine.jsonl: line 2: references"}},
           {"own file twice",
            with(run, "--task",
                 "jsonl:" + (folder / "good.jsonl") + ",jsonl:" + folder.path() + "//good.jsonl"),
            2,
            {"--task", "jsonl:good.jsonl", "twice"}},
           {"own file too long",
            with(with(run, "--task", "jsonl:" + (folder / "good.jsonl")), "--length", "8"),
            2,
            {"--length", "good.jsonl: line 1: prompt"}},
           {"task beside samples", from + Words{"--task", "ruler_niah"}, 2, {"--task", "--samples-from"}},
           {"parameter beside samples",
            from + Words{"--set", "ruler_niah.queries=2"},
            2,
            {"--set ruler_niah.queries", "--samples-from"}},
           {"samples absent",
            with(from, "--samples-from", folder / "none.jsonl"),
            3,
            {"none.jsonl", "cannot open"}},
           {"samples broken",
            with(from, "--samples-from", folder / "broken.jsonl"),
            3,
            {"broken.jsonl: line 1", "JSON"}},
           {"samples twice",
            with(from, "--samples-from", folder / "twice.jsonl"),
            3,
            {"twice.jsonl: line 2: sample"}},
           {"samples too long", from + Words{"--length", "8"}, 2, {"--length", "made.jsonl: line 1: prompt"}},
           {"generate without a tokenizer",
            {"tasks", "generate", "--task", "ruler_niah", "--length", "1500"},
            2,
            {"--model", "--tokenizer", "neither"}},
           {"generate with both",
            generate + Words{"--tokenizer", kTasksModel + "/tokenizer.json"},
            2,
            {"both"}},
           {"generate without a length",
            {"tasks", "generate", "--model", kTasksModel, "--task", "ruler_niah"},
            2,
            {"--length"}},
           {"generate too short", with(generate, "--length", "100"), 2, {"--length", "the least that fits"}},
           {"generate of nothing",
            {"tasks", "generate", "--model", kTasksModel, "--length", "1500"},
            2,
            {"--task"}},
           {"tokenizer without a chat prompt",
            {"tasks", "generate", "--tokenizer", plain / "tokenizer.json", "--task", "ruler_niah", "--length",
             "1500"},
            2,
            {"--tokenizer", "<|im_start|>", "none", "--model"}},
           {"unknown action", {"tasks", "show"}, 2, {"list, generate, score", "show"}},
           {"nothing to score", {"tasks", "score"}, 2, {"FILE"}},
           {"no gold",
            {"tasks", "score", folder / "predictions.jsonl"},
            3,
            {"predictions.jsonl: line 1: gold"}},
           {"predicted twice", score("two.jsonl"), 3, {"two.jsonl: line 2: sample", "already"}},
           {"no such sample", score("stray.jsonl"), 3, {"stray.jsonl: line 1: sample", "made.jsonl"}},
           {"prediction is a number", score("number.jsonl"), 3, {"number.jsonl: line 1: prediction", "7"}},
           {"scores to nowhere",
            score("predictions.jsonl") + Words{"--output", folder / "nowhere/s.jsonl"},
            4,
            {"nowhere/s.jsonl"}},
           {"samples to a full disk",
            {"sh", "-c",
             "exec " + tessera({})[0] + " tasks generate --task ruler_niah --length 1500 --model " +
                 kTasksModel + " > /dev/full"},
            4,
            {"standard output"}},
       }) {
    CAPTURE(bad.name);
    check_refused(run_command(bad.words[0] == "sh" ? bad.words : tessera(bad.words)), bad.code, bad.says);
    CHECK(is_empty(folder / "results"));
  }
}

}  // namespace tessera::test
