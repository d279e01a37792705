#include "jobs/options.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "attention/method.hpp"
#include "jobs/attention_options.hpp"
#include "jobs/bench_options.hpp"
#include "jobs/option_set.hpp"
#include "jobs/plan/plan_options.hpp"
#include "jobs/run_options.hpp"
#include "jobs/tasks/task.hpp"
#include "jobs/tasks_options.hpp"
#include "jobs/trace_options.hpp"
#include "runtime/core/error.hpp"
#include "tessera_build_info.hpp"

namespace tessera {
namespace {

// Far above any machine, far below what would overflow products of two.
constexpr int kMostRanks = 1 << 16;

// Types that the backends compute or store in today; others are named as known but absent.
void add_dtype(OptionSet& set, const std::string& name, DType* target, std::vector<DType> built,
               std::string help) {
  std::vector<std::string_view> names;
  for (DType dtype : built) names.push_back(name_of(dtype));
  set.custom(name, OptionKind::kText, fmt::format("{}", fmt::join(names, "|")), std::string(name_of(*target)),
             std::move(help), [target, built, names](const OptionValue& value) {
               DType dtype = DType::kF32;
               try {
                 dtype = parse_dtype(value.words.front());
               } catch (const UsageError&) {
                 throw UsageError("{}: '{}' is not one of {}", value.where, value.words.front(),
                                  fmt::join(names, ", "));
               }
               if (std::find(built.begin(), built.end(), dtype) == built.end()) {
                 throw UsageError("{}: {} is not there yet; use {}", value.where, name_of(dtype),
                                  fmt::join(names, ", "));
               }
               *target = dtype;
             });
}

void add_rope(OptionSet& set, std::string* rope) {
  set.custom("rope", OptionKind::kText, "auto|config|yarn:F", "auto",
             "rotary scaling: auto follows the study (YaRN for Qwen past 32,768 tokens, prompt and output "
             "together); "
             "config takes config.json as it is; yarn:F is YaRN with factor F",
             [rope](const OptionValue& value) {
               const std::string& word = value.words.front();
               if (word == "auto" || word == "config") {
                 *rope = word;
                 return;
               }
               const std::optional<double> factor =
                   word.rfind("yarn:", 0) == 0 ? parse_real(std::string_view(word).substr(5)) : std::nullopt;
               if (!factor) {
                 throw UsageError("{}: '{}' is not one of auto, config, yarn:F (a number)", value.where,
                                  word);
               }
               if (*factor < 1 || *factor > 64) {
                 throw UsageError("{}: YaRN's factor {} is not between 1 and 64", value.where, *factor);
               }
               *rope = word;
             });
}

// What `eval` takes. `plan` takes the same, so that the command of a run to come only changes its first word;
// plans: there, for types that the CPU does not compute in, and without a place to write to.
void declare_eval(OptionSet& set, EvalOptions& o, std::string& config, bool plans) {
  set.group("Model");
  set.text("model", &o.model, "DIR", "Hugging Face directory: config.json, tokenizer.json, *.safetensors")
      .required = true;
  add_weights(set, &o.weights);
  add_rope(set, &o.rope);
  std::vector<DType> arithmetic{DType::kF32};
  if (plans) arithmetic.insert(arithmetic.end(), {DType::kBF16, DType::kF16});
  const std::string on_gpu = plans ? "; bf16 on a GPU" : "; on a GPU that of the weights";
  add_dtype(set, "dtype", &o.dtype, arithmetic,
            plans ? "arithmetic; bf16 on a GPU"
                  : "arithmetic; on a GPU sums only, of products of the weights' type");
  add_weights_dtype(set, &o.weights_dtype);
  add_dtype(set, "kv-dtype", &o.kv_dtype, {DType::kF32, DType::kBF16, DType::kF16},
            "storage of keys and values" + on_gpu);

  set.group("Task");
  add_task_options(set, o);
  set.text(
      "samples-from", &o.samples_from, "FILE.jsonl",
      "samples that `tessera tasks generate` wrote, instead of --task; --length is then that of the file");
  set.integer("max-output-tokens", &o.max_output_tokens, 1, kMostTokens, "tokens to generate at most", "N",
              "the task's own");
  set.settings(
      "set", &o.settings,
      fmt::format(
          "a parameter of a task or method; may be repeated. Tasks: {}. Methods: {}. streaming.window is "
          "for both phases, prefill.streaming.window and decode.streaming.window for one. The "
          "window of vertical_slash and flexprefill is 512 for ruler_niah and story_retrieval",
          fmt::join(setting_defaults(), ", "), fmt::join(method_setting_defaults(), ", ")));

  add_attention_options(set, o);

  set.group("Ranks and devices (tp x sp x dp = number of ranks)");
  const std::string any = plans ? "all that divide --ranks" : "";
  set.integer("tp", &o.tp, 1, kMostRanks, "tensor-parallel ranks: heads and MLP are split", "N", any);
  set.integer("sp", &o.sp, 1, kMostRanks, "sequence-parallel ranks: the prompt is split", "N", any);
  set.integer("dp", &o.dp, 1, kMostRanks, "replicas of the model: samples are split", "N",
              "ranks / (tp x sp)");
  set.integer("batch", &o.batch, 1, 4096, "sequences that a replica decodes together");
  set.custom("device", OptionKind::kText, "cpu|cuda", "cpu", "where to compute",
             [&o](const OptionValue& value) {
               const std::string& word = value.words.front();
               if (word != "cpu" && word != "cuda")
                 throw UsageError("{}: '{}' is not one of cpu, cuda", value.where, word);
               o.device = word == "cuda" ? DeviceKind::kCuda : DeviceKind::kCpu;
             });
  add_threads(set, &o.threads);

  set.group("Run");
  set.text("trace", &o.trace, "FILE.h5", "HDF5 trace to write; the journal is FILE.h5.journal").required =
      !plans;
  set.flag("fresh", &o.fresh, "discard the journal and trace that are there, and start anew");
  set.text("log-dir", &o.log_dir, "DIR", "also write one log a rank, DIR/tessera.RANK.log");
  set.duration("timeout", &o.timeout_s, "how long a rank waits for another before the job ends (exit 5)",
               "600");
  set.duration(
      "max-time", &o.max_time_s,
      "stop cleanly (exit 75) after this time, so that the same command resumes; seconds, 90m or 1:30:00",
      "none");
  set.text("config", &config, "FILE.toml",
           "options from a TOML file, keys without dashes; the command line wins")
      .in_file = false;
  if (plans) return;

  set.group("Prediction, printed beside what the run measured");
  add_machine_options(set, o.machine, "on a GPU by its name; else cpu");
}

OptionSet eval_options(EvalOptions& o, std::string& config) {
  OptionSet set(
      "eval",
      "Answers the samples of one or more tasks with a model and leaves their scores in a journal and an "
      "HDF5 trace. Repeat the command to resume it; more --samples append; another number of ranks may "
      "go on with it.",
      "mpirun -np 2 tessera eval --model DIR --task ruler_niah --length 4096 --samples 20 --tp 2 "
      "--trace out.h5");
  declare_eval(set, o, config, false);
  return set;
}

ParsedCommand parse_plan(const std::vector<std::string>& words) {
  PlanOptions options;
  std::string config;
  OptionSet set(
      "plan",
      "Checks what `eval` would check before it starts and says what the run would take: memory a rank, "
      "operations, bytes and time on every grid of ranks, the best first. Options are those of `eval`; "
      "--task and --trace may be left out. Exit code 4 where no grid fits, with what would.",
      "tessera plan --model DIR --weights random:1 --length 131072 --ranks 8 --machine h200");
  options.eval.tp = options.eval.sp = 0;
  add_plan_options(set, options);
  declare_eval(set, options.eval, config, true);
  if (set.parse(words)) return PrintText{set.help_text()};
  split_settings(options.eval);
  settle_plan_options(set, options);
  return options;
}

OptionSet info_options(InfoOptions& o) {
  OptionSet set(
      "info",
      "Shows what this binary was built from and the machine it runs on; under mpirun, one line a rank.",
      "mpirun -np 4 tessera info");
  set.flag("json", &o.json, "one JSON object instead of text");
  return set;
}

OptionSet select_options(SelectOptions& o) {
  OptionSet set(
      "select",
      "Runs one method on given queries and keys (HDF5: q (H,S,D), k (K,S,D), optionally v; float32, or "
      "bf16 as uint16) and writes what it decided, the Selection, its density by head and, with v, the "
      "attention output and log-sum-exp.",
      "tessera select --input qk.h5 --prefill vertical_slash --set vertical_slash.columns=512 "
      "--output sel.h5");
  set.text("input", &o.input, "FILE.h5", "arrays q, k and perhaps v").required = true;
  set.text("output", &o.output, "FILE.h5", "the file to write").required = true;
  set.text("prefill", &o.prefill, "METHOD", "a prefill method: " + method_names(Phase::kPrefill));
  set.text("decode", &o.decode, "METHOD",
           "a decode method, for the last query: " + method_names(Phase::kDecode));
  set.settings("set", &o.settings, "a native parameter of the method, METHOD.NAME=VALUE; may be repeated");
  set.flag("share-group", &o.share_group, "one list for all query heads of a KV head");
  set.custom("scale", OptionKind::kText, "X", "head_dim^-0.5", "factor of the scores",
             [&o](const OptionValue& value) {
               const std::optional<double> scale = parse_real(value.words.front());
               if (!scale || *scale <= 0) {
                 throw UsageError("{}: '{}' is not a number above 0", value.where, value.words.front());
               }
               o.scale = *scale;
             });
  set.integer("layer", &o.layer, 0, 1023, "the layer that the arrays are of, for pyramidkv");
  set.integer("layers", &o.layers, 1, 1024, "layers of the model, for pyramidkv");
  add_threads(set, &o.threads);
  return set;
}

void check_select(const SelectOptions& o) {
  if (o.prefill.empty() == o.decode.empty()) {
    throw UsageError("select: name one method, by --prefill or by --decode");
  }
  if (o.layer >= o.layers) throw UsageError("--layer {} is not below --layers {}", o.layer, o.layers);
  const Phase phase = o.prefill.empty() ? Phase::kDecode : Phase::kPrefill;
  const Method& method = find_method(phase, o.prefill.empty() ? o.decode : o.prefill);
  for (const auto& [key, value] : o.settings) {
    if (!key.starts_with(fmt::format("{}.", method.name))) {
      throw UsageError("--set {}={}: is no parameter of {}", key, value, method.name);
    }
  }
  MethodSettings(method, o.settings);
}

struct CommandName {
  const char* words;  // "trace check"
  const char* summary;
};
constexpr CommandName kCommands[] = {
    {"info", "the build and the machine"},
    {"eval", "run tasks on a model, with a journal and a trace"},
    {"plan", "memory, operations, bytes and time of an eval to come, and what stands against it"},
    {"select", "run one method on queries and keys from a file"},
    {"tasks list", "the tasks, their scores and parameters"},
    {"tasks generate", "write the samples of tasks as JSON lines"},
    {"tasks score", "score predictions that another engine made"},
    {"trace check", "read traces whole and report what is wrong"},
    {"trace rebuild", "make a trace again from its journal"},
    {"trace export", "write the tables of a trace as CSV or JSON lines"},
    {"trace merge", "join several traces in one"},
    {"report", "compare the points of traces: score, sparsity, time, bytes"},
    {"bench e2e", "time prefill and decode of a model"},
    {"bench load", "time loading a checkpoint"},
    {"bench gemm", "time matrix products"},
    {"bench attention", "time dense attention"},
    {"bench decode", "time a decode step on a GPU"},
    {"bench select", "time page selection on a GPU"},
    {"bench sparse", "time sparse attention beside dense"},
    {"bench exchange", "count the bytes that ranks fetch"},
};

std::string overview() {
  std::string out =
      "tessera runs long-context language models under sparse attention on many ranks, and measures what "
      "the\n"
      "sparsity costs and buys.\n\nCommands:\n";
  for (const CommandName& command : kCommands) {
    out += fmt::format("  {:<18}{}\n", command.words, command.summary);
  }
  out +=
      "\n`tessera COMMAND --help` shows the options of a command; `tessera --version` the version.\n"
      "Exit codes: 0 done, 2 usage or configuration, 3 bad input file, 4 memory or disk, 5 a peer failed,\n"
      "6 NaN or Inf, 75 stopped on request (run the same command again to resume).\n";
  return out;
}

// The commands whose first word is `first`, by their second word.
std::vector<std::string> second_words(std::string_view first) {
  std::vector<std::string> words;
  for (const CommandName& command : kCommands) {
    const std::string_view text = command.words;
    const std::size_t space = text.find(' ');
    if (space != std::string_view::npos && text.substr(0, space) == first)
      words.emplace_back(text.substr(space + 1));
  }
  return words;
}

std::vector<std::string> first_words() {
  std::vector<std::string> words;
  for (const CommandName& command : kCommands) {
    std::string first = command.words;
    first.resize(std::min(first.find(' '), first.size()));
    if (std::find(words.begin(), words.end(), first) == words.end()) words.push_back(first);
  }
  return words;
}

bool is_help(const std::string& word) {
  return word == "--help" || word == "-h" || word == "help";
}

void check_eval(const EvalOptions& o) {
  check_task_options(o, "eval");
  check_settings(o.settings);
  check_attention_options(o);
}

}  // namespace

ParsedCommand parse_command_line(int argc, const char* const* argv) {
  std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
  if (words.empty()) throw UsageError("tessera: no command; use one of {}", fmt::join(first_words(), ", "));
  if (is_help(words[0])) return PrintText{overview()};
  if (words[0] == "--version") return PrintText{fmt::format("tessera {}\n", build_info::kVersion)};

  std::string command = words[0];
  const std::vector<std::string> firsts = first_words();
  if (std::find(firsts.begin(), firsts.end(), command) == firsts.end()) {
    throw UsageError(
        "'{}': unknown command{}", command,
        suggestion(command, firsts, "", fmt::format("; use one of {}", fmt::join(firsts, ", "))));
  }
  std::size_t used = 1;
  if (const std::vector<std::string> seconds = second_words(command); !seconds.empty()) {
    if (words.size() > 1 && is_help(words[1])) return PrintText{overview()};
    if (words.size() < 2 || std::find(seconds.begin(), seconds.end(), words[1]) == seconds.end()) {
      const std::string found = words.size() < 2 ? "nothing" : "'" + words[1] + "'";
      throw UsageError("tessera {}: needs one of {}, found {}", command, fmt::join(seconds, ", "), found);
    }
    command += " " + words[1];
    used = 2;
  }
  words.erase(words.begin(), words.begin() + static_cast<std::ptrdiff_t>(used));

  const auto parse = [&words](OptionSet set, auto& options) -> ParsedCommand {
    if (set.parse(words)) return PrintText{set.help_text()};
    return std::move(options);
  };
  if (command == "info") {
    InfoOptions options;
    return parse(info_options(options), options);
  }
  if (command == "eval") {
    EvalOptions options;
    std::string config;
    ParsedCommand parsed = parse(eval_options(options, config), options);
    if (auto* eval = std::get_if<EvalOptions>(&parsed)) {
      split_settings(*eval);
      check_eval(*eval);
    }
    return parsed;
  }
  if (command == "plan") return parse_plan(words);
  if (command == "select") {
    SelectOptions options;
    ParsedCommand parsed = parse(select_options(options), options);
    if (const auto* select = std::get_if<SelectOptions>(&parsed)) check_select(*select);
    return parsed;
  }
  if (command == "report") {
    ReportOptions options;
    return parse(report_options(options), options);
  }
  const std::string action = command.substr(command.find(' ') + 1);
  if (command.rfind("tasks ", 0) == 0) {
    TasksOptions options;
    options.action = action == "list"       ? TasksOptions::Action::kList
                     : action == "generate" ? TasksOptions::Action::kGenerate
                                            : TasksOptions::Action::kScore;
    ParsedCommand parsed = parse(tasks_options(options), options);
    if (const auto* tasks = std::get_if<TasksOptions>(&parsed)) check_tasks(*tasks);
    return parsed;
  }
  if (command.rfind("trace ", 0) == 0) {
    TraceOptions options;
    options.action = action == "check"     ? TraceOptions::Action::kCheck
                     : action == "rebuild" ? TraceOptions::Action::kRebuild
                     : action == "export"  ? TraceOptions::Action::kExport
                                           : TraceOptions::Action::kMerge;
    ParsedCommand parsed = parse(trace_options(options), options);
    const auto* trace = std::get_if<TraceOptions>(&parsed);
    if (trace != nullptr && trace->table == "all" && trace->output.empty()) {
      throw UsageError("--table: all tables need a folder; give --output DIR or one table");
    }
    return parsed;
  }
  using Kind = BenchOptions::Kind;
  return parse_bench(words, action == "e2e"         ? Kind::kEndToEnd
                            : action == "load"      ? Kind::kLoad
                            : action == "gemm"      ? Kind::kGemm
                            : action == "attention" ? Kind::kAttention
                            : action == "decode"    ? Kind::kDecode
                            : action == "select"    ? Kind::kSelect
                            : action == "sparse"    ? Kind::kSparse
                                                    : Kind::kExchange);
}

}  // namespace tessera
