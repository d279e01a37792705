#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "jobs/option_set.hpp"
#include "jobs/options.hpp"
#include "runtime/core/error.hpp"

using namespace tessera;

namespace {

// Words are split at blanks; a test that needs a blank in a word has no use here.
ParsedCommand parse(const std::string& line) {
  std::vector<std::string> words{"tessera"};
  std::size_t start = 0;
  while (start < line.size()) {
    const std::size_t end = std::min(line.find(' ', start), line.size());
    if (end > start) words.push_back(line.substr(start, end - start));
    start = end + 1;
  }
  std::vector<const char*> argv;
  for (const std::string& word : words) argv.push_back(word.c_str());
  return parse_command_line(static_cast<int>(argv.size()), argv.data());
}

const std::string kEval = "eval --model m --task ruler_niah --length 4096 --trace out.h5 ";

EvalOptions eval(const std::string& more) {
  return std::get<EvalOptions>(parse(kEval + more));
}

std::string problem_of(const std::string& line) {
  try {
    parse(line);
  } catch (const UsageError& e) {
    CHECK(e.code() == ExitCode::kUsage);
    return e.what();
  } catch (const std::exception& e) {
    return std::string("another exception: ") + e.what();
  }
  return "accepted";
}

// A file that is there while the test runs.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& text)
      : path_((std::filesystem::temp_directory_path() /
               ("tessera_options_" + std::to_string(::getpid()) + ".toml"))
                  .string()) {
    std::ofstream(path_) << text;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace

TEST_CASE("eval: defaults are those of the study") {
  const EvalOptions o = eval("");
  CHECK(o.model == "m");
  CHECK(o.tasks == std::vector<std::string>{"ruler_niah"});
  CHECK(o.length == 4096);
  CHECK(o.samples == 100);
  CHECK(o.seed == 43);
  CHECK(o.max_output_tokens == 0);
  CHECK(o.prompt_style == PromptStyle::kFull);
  CHECK(o.prefill == "dense");
  CHECK(o.decode == "dense");
  CHECK(o.tp == 1);
  CHECK(o.sp == 1);
  CHECK(o.dp == 0);
  CHECK(o.batch == 1);
  CHECK(o.rope == "auto");
  CHECK(!o.weights.random);
  CHECK(o.weights_dtype.as_file);
  CHECK(o.kv_dtype == DType::kF32);
  CHECK(o.device == DeviceKind::kCpu);
  CHECK(!o.fresh);
  CHECK(o.max_time_s == 0);
}

TEST_CASE("eval: every option reaches its field") {
  const EvalOptions o = eval(
      "--weights random:7 --rope yarn:4 --dtype fp32 --weights-dtype f32 --kv-dtype bfloat16 --samples 12 "
      "--seed 9 "
      "--max-output-tokens 128 --prompt-style compact --set ruler_niah.queries=2 --set ruler_niah.letters=6 "
      "--prefill dense --decode dense --tp 2 --sp=3 --dp 4 --batch 5 --threads 6 --device cpu --fresh "
      "--log-dir logs "
      "--timeout 90 --max-time 1h30m");
  CHECK(o.weights.random);
  CHECK(o.weights.seed == 7);
  CHECK(o.rope == "yarn:4");
  CHECK(!o.weights_dtype.as_file);
  CHECK(o.kv_dtype == DType::kBF16);
  CHECK(o.samples == 12);
  CHECK(o.seed == 9);
  CHECK(o.max_output_tokens == 128);
  CHECK(o.prompt_style == PromptStyle::kCompact);
  CHECK(o.settings == TaskSettings{{"ruler_niah.letters", "6"}, {"ruler_niah.queries", "2"}});
  CHECK(o.tp == 2);
  CHECK(o.sp == 3);
  CHECK(o.dp == 4);
  CHECK(o.batch == 5);
  CHECK(o.threads == 6);
  CHECK(o.fresh);
  CHECK(o.log_dir == "logs");
  CHECK(o.timeout_s == 90);
  CHECK(o.max_time_s == 5400);
  CHECK(o.trace == "out.h5");
}

TEST_CASE("eval: the options of sparse attention") {
  const EvalOptions none = eval("");
  CHECK(none.method_settings.empty());
  CHECK(none.budget.text.empty());
  CHECK(!none.prefill_sparsity);
  CHECK(none.exchange == ExchangeMode::kAuto);

  const EvalOptions o = eval(
      "--prefill vertical_slash --decode streaming --set ruler_niah.queries=2 --set vertical_slash.window=64 "
      "--set decode.streaming.sinks=9 --prefill-sparsity 0.9 --share-group --dense-layers 5,0-2,1 --exchange "
      "gather --diagnose 3 --diagnose 0,7-8 --dump-selections out");
  CHECK(o.prefill == "vertical_slash");
  CHECK(o.decode == "streaming");
  CHECK(o.settings == TaskSettings{{"ruler_niah.queries", "2"}});
  CHECK(o.method_settings ==
        std::map<std::string, std::string>{{"decode.streaming.sinks", "9"}, {"vertical_slash.window", "64"}});
  CHECK(o.prefill_sparsity == 0.9);
  CHECK(!o.decode_sparsity);
  CHECK(o.share_group);
  CHECK(o.dense_layers == std::vector<std::int64_t>{0, 1, 2, 5});
  CHECK(o.exchange == ExchangeMode::kGather);
  CHECK(o.diagnose == std::vector<std::int64_t>{0, 3, 7, 8});
  CHECK(o.dump_selections == "out");

  for (const char* budget : {"study:10x", "study:10"}) {
    const EvalOptions both = eval(std::string("--prefill block_sparse --decode quest --budget ") + budget);
    CHECK(both.budget.prefill == 10);
    CHECK(both.budget.decode == 10);
    CHECK(!both.budget.by_phase);
  }
  const EvalOptions two = eval("--prefill block_sparse --decode quest --budget study:5x,20x");
  CHECK(two.budget.prefill == 5);
  CHECK(two.budget.decode == 20);
  const EvalOptions one = eval("--prefill block_sparse --decode quest --budget study:none,3.33x");
  CHECK(!one.budget.prefill);
  CHECK(one.budget.decode == 3.33);
}

TEST_CASE("any prefill method with any decode method, on the command line") {
  const std::vector<std::string> prefill = {"dense",        "streaming",   "vertical_slash",
                                            "block_sparse", "flexprefill", "xattention"};
  const std::vector<std::string> decode = {"dense",     "streaming", "snapkv",    "ada_snapkv",
                                           "pyramidkv", "quest",     "topp_pages"};
  for (const std::string& p : prefill) {
    for (const std::string& d : decode) {
      const EvalOptions o = eval("--prefill " + p + " --decode " + d);
      CHECK(o.prefill == p);
      CHECK(o.decode == d);
    }
  }
}

TEST_CASE("the options of sparse attention in a file") {
  const TemporaryFile file(
      "prefill = 'vertical_slash'\n"
      "decode = 'quest'\n"
      "prefill-sparsity = 0.9\n"
      "dense-layers = [0, 1, '4-5']\n"
      "diagnose = 2\n"
      "share-group = true\n"
      "exchange = 'selected'\n"
      "dump-selections = 'dumps'\n"
      "[set]\n"
      "ruler_niah.queries = 2\n"
      "quest.per_query_head = true\n"
      "quest.tokens = 512\n");
  const EvalOptions o = eval("--config " + file.path());
  CHECK(o.prefill == "vertical_slash");
  CHECK(o.decode == "quest");
  CHECK(o.prefill_sparsity == 0.9);
  CHECK(o.dense_layers == std::vector<std::int64_t>{0, 1, 4, 5});
  CHECK(o.diagnose == std::vector<std::int64_t>{2});
  CHECK(o.share_group);
  CHECK(o.exchange == ExchangeMode::kSelected);
  CHECK(o.dump_selections == "dumps");
  CHECK(o.settings == TaskSettings{{"ruler_niah.queries", "2"}});
  CHECK(o.method_settings ==
        std::map<std::string, std::string>{{"quest.per_query_head", "true"}, {"quest.tokens", "512"}});
  const TemporaryFile whole(
      "decode = 'quest'\ndecode-sparsity = 0\ndense-layers = '0-3'\nbudget = 'study:1x'\n");
  CHECK(problem_of(kEval + "--config " + whole.path()).find("both set the budget of decode") !=
        std::string::npos);
}

TEST_CASE("other commands") {
  CHECK(std::get<InfoOptions>(parse("info --json")).json);
  CHECK(!std::get<InfoOptions>(parse("info")).json);
  const auto check = std::get<TraceOptions>(parse("trace check a.h5 info b.h5"));
  CHECK(check.action == TraceOptions::Action::kCheck);
  CHECK(check.files == std::vector<std::string>{"a.h5", "info", "b.h5"});
  CHECK(std::get<TraceOptions>(parse("trace rebuild a.h5")).action == TraceOptions::Action::kRebuild);
  const auto exported = std::get<TraceOptions>(parse("trace export a.h5 --table samples --format jsonl"));
  CHECK(exported.action == TraceOptions::Action::kExport);
  CHECK(exported.table == "samples");
  CHECK(exported.format == "jsonl");
  const auto merged = std::get<TraceOptions>(parse("trace merge --output c.h5 a.h5 b.h5"));
  CHECK(merged.action == TraceOptions::Action::kMerge);
  CHECK(merged.output == "c.h5");
  CHECK(merged.files.size() == 2);
  const auto report = std::get<ReportOptions>(parse("report a.h5 b.h5.journal --format markdown"));
  CHECK(report.files == std::vector<std::string>{"a.h5", "b.h5.journal"});
  CHECK(report.format == "markdown");
  CHECK(std::get<ReportOptions>(parse("report --format csv a.h5")).files.size() == 1);
  CHECK(std::get<ReportOptions>(parse("report a.h5")).format == "text");
  const auto bench =
      std::get<BenchOptions>(parse("bench attention --model m --length 128 --repeats 5 --json"));
  CHECK(bench.kind == BenchOptions::Kind::kAttention);
  CHECK(bench.length == 128);
  CHECK(bench.repeats == 5);
  CHECK(bench.json);
  CHECK(std::get<BenchOptions>(parse("bench e2e --model m")).kind == BenchOptions::Kind::kEndToEnd);
  CHECK(std::get<BenchOptions>(parse("bench load --model m")).kind == BenchOptions::Kind::kLoad);
  const auto load = std::get<BenchOptions>(parse("bench load --model m --device cuda --trace b.h5"));
  CHECK(load.device == DeviceKind::kCuda);
  CHECK(load.repeats == 3);
  CHECK(std::get<BenchOptions>(parse("bench gemm --model m")).kind == BenchOptions::Kind::kGemm);
  const auto sparse = std::get<BenchOptions>(parse("bench sparse --threads 2"));
  CHECK(sparse.kind == BenchOptions::Kind::kSparse);
  CHECK(sparse.model.empty());
  CHECK(sparse.length == 32768);
  CHECK(sparse.repeats == 3);
  const auto exchange = std::get<BenchOptions>(parse("bench exchange --length 2048 --model m"));
  CHECK(exchange.kind == BenchOptions::Kind::kExchange);
  CHECK(exchange.model == "m");
  CHECK(exchange.length == 2048);
  const auto decode = std::get<BenchOptions>(parse("bench decode --sparsity .9 --warps 8 --trace b.h5"));
  CHECK(decode.device == DeviceKind::kCuda);
  CHECK(decode.shapes.size() == 3);
  CHECK(decode.sparsity == 0.9);
  CHECK(decode.warps == 8);
  CHECK(decode.repeats == 15);
  CHECK(decode.trace == "b.h5");
  const auto prefill = std::get<BenchOptions>(
      parse("bench attention --device cuda --shapes D64-H8-K2-4K --path auto,mma --repeats 5"));
  CHECK(prefill.shapes.front().head_dim == 64);
  CHECK(prefill.paths == std::vector<std::string>{"auto", "mma"});
  CHECK(prefill.repeats == 5);
  const auto e2e = std::get<BenchOptions>(
      parse("bench e2e --model m --device cuda --batch 8 --decode quest --set quest.tokens=1024"));
  CHECK(e2e.batch == 8);
  CHECK(e2e.decode == "quest");
  CHECK(e2e.settings.at("quest.tokens") == "1024");
  CHECK(e2e.prefill == "dense");
  const auto target = std::get<BenchOptions>(
      parse("bench e2e --model m --device cuda --prefill vertical_slash --prefill-sparsity .9"));
  CHECK(target.prefill == "vertical_slash");
  CHECK(target.prefill_sparsity == 0.9);
}

TEST_CASE("tasks: every option reaches its field") {
  CHECK(std::get<TasksOptions>(parse("tasks list")).action == TasksOptions::Action::kList);
  const auto made = std::get<TasksOptions>(parse(
      "tasks generate --tokenizer t.json --task qa_squad,jsonl:a/b.jsonl --data d --length 9000 --samples 5 "
      "--seed 3 --prompt-style compact --set qa_squad.most_tokens=500 --threads 2"));
  CHECK(made.action == TasksOptions::Action::kGenerate);
  CHECK(made.tokenizer == "t.json");
  CHECK(made.model.empty());
  CHECK(made.tasks == std::vector<std::string>{"qa_squad", "jsonl:a/b.jsonl"});
  CHECK(made.data == "d");
  CHECK(made.length == 9000);
  CHECK(made.samples == 5);
  CHECK(made.seed == 3);
  CHECK(made.prompt_style == PromptStyle::kCompact);
  CHECK(made.settings == TaskSettings{{"qa_squad.most_tokens", "500"}});
  CHECK(made.threads == 2);
  const auto scored =
      std::get<TasksOptions>(parse("tasks score --samples g.jsonl --output s.jsonl a.jsonl b.jsonl"));
  CHECK(scored.action == TasksOptions::Action::kScore);
  CHECK(scored.gold == "g.jsonl");
  CHECK(scored.output == "s.jsonl");
  CHECK(scored.predictions == std::vector<std::string>{"a.jsonl", "b.jsonl"});
  const auto from = std::get<EvalOptions>(parse("eval --model m --samples-from f.jsonl --trace o.h5"));
  CHECK(from.samples_from == "f.jsonl");
  CHECK(from.tasks.empty());
  CHECK(from.length == 0);
}

TEST_CASE("help and version are texts, whatever else is on the line") {
  for (const char* line :
       {"--help", "-h", "help", "trace --help", "info --help", "eval --help", "eval -h",
        "eval --length 0 --help", "trace check --help", "report --help", "bench e2e --help"}) {
    CAPTURE(line);
    const ParsedCommand parsed = parse(line);
    REQUIRE(std::holds_alternative<PrintText>(parsed));
    CHECK(std::get<PrintText>(parsed).text.find("tessera") != std::string::npos);
  }
  CHECK(std::get<PrintText>(parse("--version")).text.rfind("tessera ", 0) == 0);
  const std::string help = std::get<PrintText>(parse("eval --help")).text;
  for (const char* word :
       {"--model DIR", "--length N", "[43]", "ruler_niah.queries", "(required)", "mpirun"}) {
    CAPTURE(word);
    CHECK(help.find(word) != std::string::npos);
  }
  std::size_t start = 0;
  while (start < help.size()) {
    const std::size_t end = help.find('\n', start);
    CHECK(end - start <= 120);
    start = end + 1;
  }
}

TEST_CASE("bad command lines are refused in one line that names the option and the value") {
  struct Case {
    std::string line;
    std::vector<std::string> says;
  };
  const std::vector<Case> cases = {
      {"", {"no command", "eval"}},
      {"evla", {"'evla'", "did you mean eval?"}},
      {"frobnicate", {"'frobnicate'", "info, eval, plan, select, tasks, trace, report, bench"}},
      {"--model m", {"'--model'", "unknown command"}},
      {"trace", {"trace", "check, rebuild, export, merge", "nothing"}},
      {"trace chek", {"'chek'", "check"}},
      {"bench", {"e2e, load, gemm, attention, decode, select, sparse, exchange"}},
      {"bench dense --model m", {"'dense'"}},
      {"bench gemm", {"--model DIR", "missing"}},
      {"bench decode --device cpu", {"--device", "'cpu'", "only device"}},
      {"bench attention --model m --path mma", {"--path", "--device cuda"}},
      {"bench e2e --model m --prefill block_sparse", {"--prefill", "--device cuda"}},
      {"bench e2e --model m --device cuda --prefill-sparsity .5", {"--prefill-sparsity", "dense"}},
      {"bench e2e --model m --device cuda --prefill block_sparse --prefill-sparsity 1",
       {"--prefill-sparsity", "'1'"}},
      {"bench attention --device cuda --path fast", {"--path", "'fast'", "wgmma"}},
      {"bench select --shapes D128-H64-K7-1K", {"--shapes", "'D128-H64-K7-1K'", "D128-H64-K8-128K"}},
      {"info --jsn", {"--jsn", "did you mean --json?"}},
      {"info now", {"'now'", "unexpected"}},
      {"eval --task ruler_niah --length 1 --trace t", {"--model DIR", "missing"}},
      {"eval --model m --length 1 --trace t", {"--task", "missing"}},
      {"eval --model m --task ruler_niah --trace t", {"--length", "missing"}},
      {"eval --model m --task ruler_niah --length 1", {"--trace", "missing"}},
      {kEval + "--lenght 5", {"--lenght", "did you mean --length?"}},
      {kEval + "--lenght=5", {"--lenght:", "did you mean --length?"}},
      {kEval + "--prefil dense", {"--prefil", "did you mean --prefill?"}},
      {kEval + "--wieghts checkpoint", {"--wieghts", "did you mean --weights?"}},
      {kEval + "--qqqqq", {"--qqqqq", "unknown option", "--help"}},
      {kEval + "-x", {"'-x'"}},
      {kEval + "stray", {"'stray'"}},
      {kEval + "--samples", {"--samples", "needs a value"}},
      {kEval + "--samples 0", {"--samples", "0 is below 1"}},
      {kEval + "--samples -3", {"--samples", "-3 is below 1"}},
      {kEval + "--samples 100000001", {"--samples", "100000001 is above 100000000"}},
      {kEval + "--samples ten", {"--samples", "'ten'"}},
      {kEval + "--samples 1.5", {"--samples", "'1.5'"}},
      {kEval + "--samples 5x", {"--samples", "'5x'"}},
      {kEval + "--samples 99999999999999999999", {"--samples", "'99999999999999999999'"}},
      {kEval + "--samples 5 --samples 6", {"--samples", "2 times", "5, 6"}},
      {"eval --model m --task ruler_niah --trace t --length 16777217", {"--length", "16777217", "16777216"}},
      {"eval --model m --task ruler_nih --trace t --length 64", {"'ruler_nih'", "did you mean ruler_niah?"}},
      {"eval --model m --task ruler_niah,,x --trace t --length 64", {"--task", "empty name"}},
      {kEval + "--task ruler_niah", {"--task", "twice"}},
      {kEval + "--seed -1", {"--seed", "-1 is below 0"}},
      {kEval + "--weights random", {"--weights", "'random'"}},
      {kEval + "--weights random:", {"--weights", "'random:'"}},
      {kEval + "--weights random:-1", {"--weights", "'random:-1'"}},
      {kEval + "--weights file.bin", {"--weights", "'file.bin'"}},
      {kEval + "--rope yarn", {"--rope", "'yarn'"}},
      {kEval + "--rope yarn:x", {"--rope", "'yarn:x'"}},
      {kEval + "--rope yarn:0.5", {"--rope", "0.5", "64"}},
      {kEval + "--rope yarn:inf", {"--rope", "'yarn:inf'"}},
      {kEval + "--dtype bf16", {"--dtype", "bf16", "f32"}},
      {kEval + "--dtype int4", {"--dtype", "'int4'", "f32"}},
      {kEval + "--kv-dtype fp8", {"--kv-dtype", "'fp8'", "f32, bf16, f16"}},
      {kEval + "--weights-dtype bf16", {"--weights-dtype", "'bf16'", "file, f32"}},
      {kEval + "--prefill quest",
       {"--prefill", "'quest' is no prefill method", "use one of dense, streaming"}},
      {kEval + "--decode qest", {"--decode", "'qest'", "did you mean quest?"}},
      {kEval + "--prefill-sparsity 1", {"--prefill-sparsity", "'1'", "below 1"}},
      {kEval + "--decode-sparsity -0.1", {"--decode-sparsity", "'-0.1'"}},
      {kEval + "--decode-sparsity nan", {"--decode-sparsity", "'nan'"}},
      {kEval + "--decode-sparsity 90%", {"--decode-sparsity", "'90%'"}},
      {kEval + "--decode-sparsity 0.5", {"--decode-sparsity 0.5", "dense", "--decode"}},
      {kEval + "--decode quest --budget 10x", {"--budget", "'10x'", "study:K"}},
      {kEval + "--decode quest --budget study:", {"--budget", "'study:'"}},
      {kEval + "--decode quest --budget study:0.5x", {"--budget", "'study:0.5x'"}},
      {kEval + "--decode quest --budget study:x", {"--budget", "'study:x'"}},
      {kEval + "--decode quest --budget study:10x,", {"--budget", "'study:10x,'"}},
      {kEval + "--decode quest --budget study:none", {"--budget", "'study:none'", "leave it out"}},
      {kEval + "--decode quest --dense-layers 3-1", {"--dense-layers", "'3-1'", "0-3"}},
      {kEval + "--decode quest --dense-layers -1", {"--dense-layers", "'-1'"}},
      {kEval + "--decode quest --dense-layers 0,,1", {"--dense-layers", "empty"}},
      {kEval + "--decode quest --dense-layers 0-", {"--dense-layers", "'0-'"}},
      {kEval + "--decode quest --dense-layers first", {"--dense-layers", "'first'"}},
      {kEval + "--decode quest --dense-layers 0-9999999999", {"--dense-layers", "9999999999", "4095"}},
      {kEval + "--decode quest --diagnose 0-99999999", {"--diagnose", "0-99999999", "65536"}},
      {kEval + "--decode quest --diagnose 100", {"--diagnose", "100", "from 0 to 99"}},
      {kEval + "--exchange all", {"--exchange", "'all'", "auto, selected, gather"}},
      {kEval + "--decode quest --set quest.token=5", {"--set quest.token", "did you mean quest.tokens?"}},
      {kEval + "--set qest.tokens=5", {"--set qest.tokens", "did you mean quest.tokens?"}},
      {kEval + "--set ruler_nih.queries=2", {"ruler_nih.queries", "did you mean ruler_niah.queries?"}},
      {kEval + "--set quest.tokens=5", {"--set quest.tokens=5", "change nothing", "--decode"}},
      {kEval + "--set prefill.quest.tokens=5", {"--set prefill.quest.tokens", "no prefill method"}},
      {kEval + "--set prefill=5", {"--set prefill"}},
      {kEval + "--set quest.=5", {"--set quest."}},
      {kEval + "--set .=5", {"--set ."}},
      {kEval + "--decode quest --set quest.tokens=many", {"--set quest.tokens", "many"}},
      {kEval + "--decode quest --set quest.tokens=8", {"--set quest.tokens", "8", "16"}},
      {kEval + "--device tpu", {"--device", "'tpu'"}},
      {kEval + "--tp 0", {"--tp", "0 is below 1"}},
      {kEval + "--sp 70000", {"--sp", "70000 is above 65536"}},
      {kEval + "--dp 0", {"--dp", "0 is below 1"}},
      {kEval + "--batch 0", {"--batch", "0 is below 1"}},
      {kEval + "--threads 0", {"--threads", "0 is below 1"}},
      {kEval + "--max-output-tokens 0", {"--max-output-tokens", "0 is below 1"}},
      {kEval + "--prompt-style terse", {"--prompt-style", "'terse'", "full, compact"}},
      {kEval + "--set queries", {"--set", "'queries'", "KEY=VALUE"}},
      {kEval + "--set =4", {"--set", "'=4'"}},
      {kEval + "--set ruler_niah.needles=4", {"ruler_niah.needles", "ruler_niah.queries"}},
      {kEval + "--set ruler_niah.queries=0", {"ruler_niah.queries", "'0'", "from 1 to 64"}},
      {kEval + "--set ruler_niah.queries=many", {"ruler_niah.queries", "'many'"}},
      {kEval + "--timeout 0", {"--timeout", "not above 0"}},
      {kEval + "--timeout soon", {"--timeout", "'soon'"}},
      {kEval + "--max-time 1:99:00", {"--max-time", "'1:99:00'"}},
      {kEval + "--model=", {"--model"}},
      {kEval + "--fresh=maybe", {"fresh"}},
      {kEval + "--config /nowhere/x.toml", {"--config", "/nowhere/x.toml", "cannot be read"}},
      {kEval + "--config /", {"--config", "cannot be read"}},
      {"trace check", {"FILE...", "missing"}},
      {"trace rebuild a.h5 b.h5", {"'b.h5'", "unexpected"}},
      {"trace export a.h5 --table plots", {"--table", "'plots'", "points"}},
      {"trace export a.h5 --table all", {"--table", "--output DIR"}},
      {"trace merge a.h5 b.h5", {"--output FILE.h5", "missing"}},
      {"report", {"FILE...", "missing"}},
      {"report a.h5 --format html", {"--format", "'html'", "text, markdown, csv"}},
      {"report a.h5 --form csv", {"--form", "did you mean --format?"}},
      {"report a.h5 --output b.md", {"--output", "unknown option"}},
      {"bench e2e", {"--model DIR", "missing"}},
      {"bench e2e --model m --repeats 0", {"--repeats", "0 is below 1"}},
      {"bench attention --model m --weights random:1", {"--weights"}},  // it would change nothing
      {"bench load --model m --length 64", {"--length"}},
      {"bench load --model m --trace b.h5", {"--trace", "--device cuda"}},
      {"bench attention", {"--model DIR", "missing"}},
      {"bench sparse --weights-dtype file", {"--weights-dtype"}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.line);
    const std::string problem = problem_of(c.line);
    CAPTURE(problem);
    CHECK(problem != "accepted");
    CHECK(problem.rfind("another exception", 0) != 0);
    CHECK(problem.find('\n') == std::string::npos);
    for (const std::string& part : c.says) {
      CAPTURE(part);
      CHECK(problem.find(part) != std::string::npos);
    }
  }
}

TEST_CASE("a configuration file fills what the command line leaves out") {
  const TemporaryFile file(
      "model = 'from_file'\n"
      "task = ['ruler_niah']\n"
      "length = 2048\n"
      "samples = 7\n"
      "trace = \"file.h5\"\n"
      "fresh = true\n"
      "rope = 'yarn:2'\n"
      "timeout = 30\n"
      "max-time = '2h'\n"
      "max-output-tokens = 64\n"
      "weights = 'random:3'\n"
      "set = {\"ruler_niah.queries\" = 2, \"ruler_niah.groups\" = 3}\n");
  const auto only_file = std::get<EvalOptions>(parse("eval --config " + file.path()));
  CHECK(only_file.model == "from_file");
  CHECK(only_file.tasks == std::vector<std::string>{"ruler_niah"});
  CHECK(only_file.length == 2048);
  CHECK(only_file.samples == 7);
  CHECK(only_file.trace == "file.h5");
  CHECK(only_file.fresh);
  CHECK(only_file.rope == "yarn:2");
  CHECK(only_file.timeout_s == 30);
  CHECK(only_file.max_time_s == 7200);
  CHECK(only_file.max_output_tokens == 64);
  CHECK(only_file.weights.seed == 3);
  CHECK(only_file.settings == TaskSettings{{"ruler_niah.groups", "3"}, {"ruler_niah.queries", "2"}});

  const auto both = std::get<EvalOptions>(parse(
      "eval --samples 9 --set ruler_niah.queries=5 --length 512 --config " + file.path() + " --model here"));
  CHECK(both.model == "here");
  CHECK(both.samples == 9);
  CHECK(both.length == 512);
  CHECK(both.trace == "file.h5");
  CHECK(both.settings == TaskSettings{{"ruler_niah.groups", "3"}, {"ruler_niah.queries", "5"}});
}

TEST_CASE("settings in a file: a table with dotted keys, or an array") {
  for (const char* text : {"set = ['ruler_niah.queries=6']\n", "[set]\nruler_niah.queries = 6\n",
                           "set.ruler_niah.queries = 6\n", "[set.ruler_niah]\nqueries = 6\n"}) {
    CAPTURE(text);
    const TemporaryFile file(text);
    CHECK(eval("--config " + file.path()).settings == TaskSettings{{"ruler_niah.queries", "6"}});
  }
}

TEST_CASE("bad configuration files are refused by file, line and key") {
  struct Case {
    std::string text;
    std::vector<std::string> says;
  };
  const std::vector<Case> cases = {
      {"samples = 1\nlenght = 5\n", {":2: lenght: unknown key", "did you mean length?"}},
      {"[eval]\nsamples = 1\n", {":1: eval: unknown key"}},
      {"max_output_tokens = 4\n", {":1: max_output_tokens: unknown key", "did you mean max-output-tokens?"}},
      {"\n\nsamples = '5'\n", {":3: samples: needs an integer, found a string (5)"}},
      {"samples = 5.0\n", {":1: samples: needs an integer, found a float"}},
      {"samples = [5]\n", {":1: samples: needs an integer, found an array"}},
      {"samples = 0\n", {":1: samples: 0 is below 1"}},
      {"seed = -1\n", {":1: seed: -1 is below 0"}},
      {"rope = 4\n", {":1: rope: needs a string, found an integer (4)"}},
      {"rope = 'yarn:'\n", {":1: rope: 'yarn:'"}},
      {"dense-layers = []\n", {":1: dense-layers: the array is empty"}},
      {"dense-layers = [0.5]\n", {":1: dense-layers: needs an array of integers", "a float"}},
      {"dense-layers = true\n", {":1: dense-layers: needs an integer"}},
      {"dense-layers = [-1]\n", {":1: dense-layers: '-1'"}},
      {"prefill-sparsity = '0.9'\n", {":1: prefill-sparsity: needs a number, found a string"}},
      {"prefill-sparsity = 1\n", {":1: prefill-sparsity: '1'"}},
      {"fresh = 'yes'\n", {":1: fresh: needs true or false, found a string (yes)"}},
      {"fresh = 1\n", {":1: fresh: needs true or false"}},
      {"timeout = 1.5\n", {":1: timeout: needs seconds", "a float"}},
      {"timeout = 1979-05-27\n", {":1: timeout:", "a date or time"}},
      {"set = 'a=1'\n", {":1: set: needs a table", "a string (a=1)"}},
      {"set = [1]\n", {":1: set: needs an array of strings"}},
      {"set = []\n", {":1: set: the array is empty"}},
      {"set = {a = [1]}\n", {":1: set.a: needs a number"}},
      {"config = 'other.toml'\n", {":1: config: can be given on the command line only"}},
      {"samples = \n", {":1: not valid TOML"}},
      {"samples = 1\nsamples = 2\n", {":2: not valid TOML"}},
      {std::string("samples\0 = 1\n", 13), {"not valid TOML"}},
      {"log-dir = ''\n", {":1: log-dir: must not be empty"}},
      {std::string((1u << 20) + 1, '#'), {"more than 1048576 bytes"}},
  };
  for (const Case& c : cases) {
    const std::string text = c.text.substr(0, 60);
    CAPTURE(text);
    const TemporaryFile file(c.text);
    const std::string problem = problem_of(kEval + "--config " + file.path());
    CAPTURE(problem);
    CHECK(problem.find('\n') == std::string::npos);
    CHECK(problem.find(file.path()) != std::string::npos);
    for (const std::string& part : c.says) {
      CAPTURE(part);
      CHECK(problem.find(part) != std::string::npos);
    }
  }
}

TEST_CASE("durations") {
  CHECK(parse_duration("90") == 90);
  CHECK(parse_duration("90s") == 90);
  CHECK(parse_duration("1.5h") == 5400);
  CHECK(parse_duration("15m") == 900);
  CHECK(parse_duration("1d2h3m4s") == 93784);
  CHECK(parse_duration("1:30") == 90);
  CHECK(parse_duration("1:30:00") == 5400);
  CHECK(parse_duration("2-00:00:01") == 172801);
  for (const char* bad : {"", "h", "1x", "1h1h", "1m2h", "1:60", ":30", "1:", "1:2:3:4", "-5", "1e3", "inf",
                          "nan", "1:-5", "9999999999999", " 1", "1 "}) {
    CAPTURE(bad);
    CHECK(!parse_duration(bad).has_value());
  }
}

TEST_CASE("the nearest name") {
  const std::vector<std::string> names = {"length", "samples", "seed", "tp"};
  CHECK(nearest_name("lenght", names) == "length");
  CHECK(nearest_name("sampels", names) == "samples");
  CHECK(nearest_name("len", names) == "length");
  CHECK(nearest_name("sed", names) == "seed");
  CHECK(!nearest_name("quantisation", names).has_value());
  CHECK(!nearest_name("", {}).has_value());
}
