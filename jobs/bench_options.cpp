#include "jobs/bench_options.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "attention/method.hpp"
#include "jobs/attention_options.hpp"
#include "jobs/option_set.hpp"
#include "jobs/run_options.hpp"
#include "jobs/tasks_options.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

// Shapes that a bench on a GPU takes where none is given.
std::vector<std::string> usual_bench_shapes(BenchOptions::Kind kind) {
  switch (kind) {
    case BenchOptions::Kind::kAttention:
      return {"D128-H8-K1-32K", "D128-H64-K8-16K", "D128-H8-K1-128K", "D64-H16-K2-32K", "D256-H16-K8-32K"};
    case BenchOptions::Kind::kSparse:
      return {"D128-H8-K1-16K", "D128-H8-K1-64K", "D128-H8-K1-128K"};
    case BenchOptions::Kind::kDecode:
      return {"D128-H64-K8-128K", "D128-H64-K8-128K-N8", "D128-H8-K1-128K"};
    case BenchOptions::Kind::kSelect:
      return {"D128-H64-K8-128K", "D128-H64-K8-128K-N8"};
    default:
      return {};
  }
}

constexpr const char* kSparsePrefills[] = {"block_sparse-128", "block_sparse-64", "vertical_slash",
                                           "flexprefill"};
constexpr double kSparsities[] = {0.5, 0.8, 0.9, 0.95, 0.98};

double parse_sparsity(const std::string& word, const std::string& where) {
  const std::optional<double> sparsity = parse_real(word);
  if (!sparsity || *sparsity < 0 || *sparsity >= 1)
    throw UsageError("{}: '{}' is not in [0, 1)", where, word);
  return *sparsity;
}

// Methods and sparsities of `bench sparse --device cuda`.
void add_sparse_prefill_options(OptionSet& set, BenchOptions& o) {
  o.methods.assign(std::begin(kSparsePrefills), std::end(kSparsePrefills));
  o.sparsities.assign(std::begin(kSparsities), std::end(kSparsities));
  set.custom("methods", OptionKind::kList, "LIST", fmt::format("{}", fmt::join(o.methods, ",")),
             "prefill methods, block_sparse with its edge", [&o](const OptionValue& value) {
               o.methods = split_list(value);
               for (const std::string& word : o.methods) {
                 if (std::find(std::begin(kSparsePrefills), std::end(kSparsePrefills), word) ==
                     std::end(kSparsePrefills))
                   throw UsageError("{}: '{}' is not one of {}", value.where, word,
                                    fmt::join(kSparsePrefills, ", "));
               }
             });
  set.custom("sparsities", OptionKind::kList, "LIST", fmt::format("{}", fmt::join(kSparsities, ",")),
             "shares of the causal pairs to leave out", [&o](const OptionValue& value) {
               o.sparsities.clear();
               for (const std::string& word : split_list(value))
                 o.sparsities.push_back(parse_sparsity(word, value.where));
             });
}

// What `bench` takes on a GPU alone.
void add_gpu_bench_options(OptionSet& set, BenchOptions& o) {
  using Kind = BenchOptions::Kind;
  set.group("On a GPU");
  set.custom("device", OptionKind::kText, "cpu|cuda", o.device == DeviceKind::kCuda ? "cuda" : "cpu",
             "where to compute", [&o](const OptionValue& value) {
               const std::string& word = value.words.front();
               const bool only_cuda = o.kind == Kind::kDecode || o.kind == Kind::kSelect;
               if (word != "cuda" && (word != "cpu" || only_cuda))
                 throw UsageError("{}: '{}' is not {}", value.where, word,
                                  only_cuda ? "cuda, the only device of this bench" : "one of cpu, cuda");
               o.device = word == "cuda" ? DeviceKind::kCuda : DeviceKind::kCpu;
             });
  const std::vector<std::string> usual = usual_bench_shapes(o.kind);
  if (!usual.empty()) {
    for (const std::string& shape : usual) o.shapes.push_back(parse_bench_shape(shape, "--shapes"));
    set.custom("shapes", OptionKind::kList, "LIST", fmt::format("{}", fmt::join(usual, ",")),
               "head dimension, query heads, KV heads, tokens and sequences: D128-H64-K8-128K-N8",
               [&o](const OptionValue& value) {
                 o.shapes.clear();
                 for (const std::string& word : split_list(value))
                   o.shapes.push_back(parse_bench_shape(word, value.where));
               });
  }
  if (o.kind == Kind::kAttention) {
    set.custom("path", OptionKind::kList, "LIST", "auto",
               "kernels, timed in turns: auto (as for eval), wgmma, wgmma-192 (192 keys a step, D128), mma",
               [&o](const OptionValue& value) {
                 o.paths = split_list(value);
                 for (const std::string& word : o.paths) {
                   if (word != "auto" && word != "wgmma" && word != "wgmma-192" && word != "mma")
                     throw UsageError("{}: '{}' is not one of auto, wgmma, wgmma-192, mma", value.where,
                                      word);
                 }
               });
  }
  if (o.kind == Kind::kSparse) add_sparse_prefill_options(set, o);
  if (o.kind == Kind::kDecode || o.kind == Kind::kSelect) {
    set.custom(
        "sparsity", OptionKind::kReal, "X", "0.95", "share of the tokens that sparse rows leave out",
        [&o](const OptionValue& value) { o.sparsity = parse_sparsity(value.words.front(), value.where); });
    set.integer("warps", &o.warps, 1, 32, "warps of a CTA that attends", "N", "as chosen for the shape");
    set.integer("stages", &o.stages, 1, 16, "pages under way a warp", "N", "as chosen for the shape");
  }
  if (o.kind == Kind::kEndToEnd) {
    set.integer("batch", &o.batch, 1, 64, "sequences that decode together");
    set.text("prefill", &o.prefill, "METHOD", "a prefill method: " + method_names(Phase::kPrefill));
    set.custom("prefill-sparsity", OptionKind::kReal, "X", "as the parameters give it",
               "target sparsity of prefill, solved on the prompt that is timed",
               [&o](const OptionValue& value) {
                 o.prefill_sparsity = parse_real(value.words.front());
                 if (!o.prefill_sparsity || *o.prefill_sparsity < 0 || *o.prefill_sparsity >= 1)
                   throw UsageError("{}: '{}' is not in [0, 1)", value.where, value.words.front());
               });
    set.text("decode", &o.decode, "METHOD", "a decode method: " + method_names(Phase::kDecode));
    set.settings("set", &o.settings, "a native parameter of a method, METHOD.NAME=VALUE; may be repeated");
  }
  set.text("trace", &o.trace, "FILE.h5", "also write the rows to an HDF5 file");
}

OptionSet bench_options(BenchOptions& o) {
  struct Text {
    const char* name;
    const char* summary;
  };
  constexpr Text kTexts[] = {
      {"e2e", "Times prefill and decode of a whole model, in tokens a second."},
      {"load",
       "Times loading a checkpoint with first touch of every byte; on a GPU beside a copy from pinned "
       "memory."},
      {"gemm", "Times the matrix products of a model's shapes."},
      {"attention",
       "Times dense attention at a model's heads, in prefill and decode; on a GPU prefill at given shapes."},
      {"sparse",
       "Times selection and sparse attention of one layer of random data, as a share of dense attention; on "
       "a "
       "GPU prefill at given shapes, with the speed-up beside 1/(1 - sparsity)."},
      {"exchange",
       "Counts the keys and values that 4 sequence-parallel ranks fetch under sparse attention, as a share "
       "of an all-gather."},
      {"decode", "Times a decode step of one layer on a GPU: dense, quest, and heads that eviction packed."},
      {"select", "Times the parts of a quest step on a GPU: page scores, choice, attention to the chosen."}};
  using Kind = BenchOptions::Kind;
  const Text& text = kTexts[static_cast<int>(o.kind)];
  const bool one_layer = o.kind == Kind::kSparse || o.kind == Kind::kExchange;
  const bool gpu_alone = o.kind == Kind::kDecode || o.kind == Kind::kSelect;
  const bool on_cpu_too = o.kind == Kind::kEndToEnd || o.kind == Kind::kLoad || o.kind == Kind::kGemm ||
                          o.kind == Kind::kAttention || o.kind == Kind::kSparse;
  if (one_layer) o.length = 32768;
  if (gpu_alone) o.device = DeviceKind::kCuda;
  OptionSet set(fmt::format("bench {}", text.name), text.summary,
                fmt::format("tessera bench {}{}", text.name,
                            gpu_alone   ? " --sparsity 0.9"
                            : one_layer ? " --threads 2"
                                        : " --model DIR --threads 2"));
  const bool whole_model = o.kind == Kind::kEndToEnd || o.kind == Kind::kLoad;
  if (!gpu_alone) {
    set.text("model", &o.model, "DIR",
             one_layer
                 ? "Hugging Face directory whose config.json gives the shapes; without it 8 query heads, "
                   "2 KV heads, head dimension 64"
                 : "Hugging Face directory; config.json gives the shapes")
        .required = whole_model;
  }
  if (whole_model) add_weights(set, &o.weights);
  if (whole_model || o.kind == Kind::kGemm) add_weights_dtype(set, &o.weights_dtype);
  if (o.kind != Kind::kLoad && !gpu_alone) {
    set.integer("length", &o.length, 1, kMostTokens, "tokens of the prompt");
  }
  if (o.kind == Kind::kEndToEnd) {
    set.integer("tokens", &o.tokens, 1, kMostTokens, "tokens to generate");
  }
  if (!gpu_alone) add_threads(set, &o.threads);
  set.integer("repeats", &o.repeats, 1, 10000, "timed repetitions; the median is shown", "N",
              gpu_alone || on_cpu_too ? "3; 15 on a GPU, 3 for e2e and load" : "");
  set.flag("json", &o.json, "one JSON object instead of text");
  if (gpu_alone || on_cpu_too) add_gpu_bench_options(set, o);
  return set;
}

// Of e2e: methods and their parameters are known, and a target is one of a sparse method.
void check_bench_methods(const BenchOptions& o) {
  const Method& prefill = find_method(Phase::kPrefill, o.prefill);
  MethodSettings(prefill, o.settings);
  MethodSettings(find_method(Phase::kDecode, o.decode), o.settings);
  if (!o.prefill_sparsity) return;
  if (prefill.unit == SelectUnit::kAll) {
    throw UsageError("--prefill-sparsity {}: {} is dense; choose a method by --prefill", *o.prefill_sparsity,
                     o.prefill);
  }
}

}  // namespace

ParsedCommand parse_bench(const std::vector<std::string>& words, BenchOptions::Kind kind) {
  constexpr int kGpuRepeats = 15;
  BenchOptions o;
  o.kind = kind;
  OptionSet set = bench_options(o);
  if (set.parse(words)) return PrintText{set.help_text()};
  const bool on_gpu = o.device == DeviceKind::kCuda;
  const bool whole_model = kind == BenchOptions::Kind::kEndToEnd || kind == BenchOptions::Kind::kLoad;
  if (on_gpu && !whole_model && !set.was_given("repeats")) o.repeats = kGpuRepeats;
  if (!on_gpu) {
    for (const char* name : {"shapes", "path", "batch", "prefill", "prefill-sparsity", "decode", "set",
                             "trace", "methods", "sparsities"}) {
      if (set.was_given(name)) throw UsageError("--{}: this bench takes it with --device cuda alone", name);
    }
    const bool needs_model = kind == BenchOptions::Kind::kGemm || kind == BenchOptions::Kind::kAttention;
    if (needs_model && o.model.empty())
      throw UsageError("--model DIR is missing: on the CPU a Hugging Face directory gives the shapes");
  }
  if (kind == BenchOptions::Kind::kEndToEnd) check_bench_methods(o);
  return o;
}

}  // namespace tessera
