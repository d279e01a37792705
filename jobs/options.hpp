// The `tessera` command line as plain values: what each command was asked to do, checked and with defaults
// filled.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "jobs/bench_shape.hpp"
#include "jobs/plan/machine.hpp"
#include "jobs/tasks/task.hpp"
#include "runtime/core/device.hpp"
#include "runtime/core/dtype.hpp"
#include "runtime/model/attention_plan.hpp"

namespace tessera {

// Where the weights come from: the checkpoint of --model, or a counter hash of a seed (config.json is
// enough).
struct WeightsSource {
  bool random = false;
  std::uint64_t seed = 0;
};

// In --weights-dtype, the file's own; else converted on loading.
struct WeightsDType {
  bool as_file = true;
  DType dtype = DType::kF32;
};

// Which samples of which tasks: what `eval` and `tasks generate` share.
struct TaskOptions {
  std::vector<std::string> tasks;
  std::int64_t length = 0;  // prompt tokens, chat prompt included; 0: as --samples-from says
  std::int64_t samples = 100;
  std::uint64_t seed = 43;
  PromptStyle prompt_style = PromptStyle::kFull;
  TaskSettings settings;     // --set TASK.NAME=VALUE
  std::string data;          // the folder that tasks on the user's data read
  std::string samples_from;  // a file of generated samples, which names its tasks; eval only
};

// --budget: the study's budgets of a compression. A number alone is for every sparse phase.
struct StudyBudget {
  std::string text;  // as written, for messages; empty: not given
  std::optional<double> prefill;
  std::optional<double> decode;
  bool by_phase = false;  // written as PREFILL,DECODE
};

struct EvalOptions : TaskOptions {
  // model
  std::string model;  // a Hugging Face directory
  WeightsSource weights;
  std::string rope = "auto";  // auto, config or yarn:F; checked, read by resolve_rope
  DType dtype = DType::kF32;  // of arithmetic
  WeightsDType weights_dtype;
  DType kv_dtype = DType::kF32;
  // task
  std::int64_t max_output_tokens = 0;  // 0: the task's own
  // attention
  std::string prefill = "dense";
  std::string decode = "dense";
  std::map<std::string, std::string> method_settings;  // --set [PHASE.]METHOD.NAME=VALUE
  StudyBudget budget;
  std::optional<double> prefill_sparsity;  // targets, in [0, 1)
  std::optional<double> decode_sparsity;
  bool share_group = false;
  std::vector<std::int64_t> dense_layers;  // ascending; the model bounds them later
  ExchangeMode exchange = ExchangeMode::kAuto;
  std::vector<std::int64_t> diagnose;  // sample numbers, ascending
  std::string dump_selections;         // a folder; empty: none
  // grid
  int tp = 1;
  int sp = 1;
  int dp = 0;       // 0: ranks / (tp·sp)
  int batch = 1;    // sequences decoded together in one replica
  int threads = 0;  // a rank; 0: OMP_NUM_THREADS, else the cores the rank may run on
  DeviceKind device = DeviceKind::kCpu;
  // run
  std::string trace;    // the HDF5 file; the journal is beside it
  std::string log_dir;  // empty: none
  bool fresh = false;
  double timeout_s = 600;  // a rank that waits longer for a peer gives up
  double max_time_s = 0;   // 0: no limit
  MachineOptions machine;  // what times are predicted for
};

// What `eval` would be asked (tp, sp, dp: 0 where not given; tasks and trace may be left out), and where.
struct PlanOptions {
  EvalOptions eval;
  int ranks = 0;                // settled by settle_plan_options
  std::string format = "text";  // text, markdown, csv or json
};

struct InfoOptions {
  bool json = false;
};

struct TraceOptions {
  enum class Action : std::uint8_t { kCheck, kRebuild, kExport, kMerge };
  Action action = Action::kCheck;
  std::vector<std::string> files;  // one for rebuild and export
  std::string output;              // export: a folder; merge: the file to write
  std::string table = "samples";   // export: points, attempts, samples or all
  std::string format = "csv";      // export: csv or jsonl
};

struct ReportOptions {
  std::vector<std::string> files;  // traces or journals
  std::string format = "text";     // text, markdown or csv
};

struct BenchOptions {
  enum class Kind : std::uint8_t {
    kEndToEnd,
    kLoad,
    kGemm,
    kAttention,
    kSparse,
    kExchange,
    kDecode,
    kSelect
  };
  Kind kind = Kind::kEndToEnd;
  DeviceKind device = DeviceKind::kCpu;  // decode and select: cuda alone
  std::string model;                     // sparse and exchange do without, on a GPU all but e2e
  WeightsSource weights;
  WeightsDType weights_dtype;
  std::int64_t length = 4096;  // prompt tokens
  std::int64_t tokens = 64;    // tokens to generate
  int threads = 0;
  int repeats = 3;
  bool json = false;
  // on a GPU
  std::vector<BenchShape> shapes;          // attention, decode, select, sparse
  std::vector<std::string> paths{"auto"};  // attention: auto, wgmma, wgmma-192, mma
  double sparsity = 0.95;                  // decode, select
  std::vector<double> sparsities;          // sparse
  std::vector<std::string> methods;        // sparse: of prefill, block_sparse with its edge
  int warps = 0;                           // decode, select: of attention; 0: as chosen for the shape
  int stages = 0;
  int batch = 1;                                // e2e
  std::string prefill = "dense";                // e2e: a prefill method
  std::string decode = "dense";                 // e2e: a decode method
  std::map<std::string, std::string> settings;  // of these
  std::optional<double> prefill_sparsity;       // e2e: a target, solved on the bench's own prompt
  std::string trace;                            // HDF5 file to write; empty: none
};

// One method on arrays from a file: exactly one of prefill and decode names it.
struct SelectOptions {
  std::string input;   // HDF5 with q, k and perhaps v
  std::string output;  // HDF5 to write
  std::string prefill;
  std::string decode;
  std::map<std::string, std::string> settings;  // --set METHOD.NAME=VALUE
  bool share_group = false;
  double scale = 0;  // of the scores; 0: head_dim^-0.5
  int layer = 0;     // of `layers`: pyramidkv
  int layers = 1;
  int threads = 0;
};

struct TasksOptions : TaskOptions {
  enum class Action : std::uint8_t { kList, kGenerate, kScore };
  Action action = Action::kList;
  // generate: one of the two
  std::string model;      // a Hugging Face directory; config.json and tokenizer.json are read
  std::string tokenizer;  // a tokenizer.json; its special tokens tell the chat prompt
  int threads = 0;
  // score
  std::vector<std::string> predictions;
  std::string gold;    // a file of generated samples, where the predictions do not hold them
  std::string output;  // JSON lines, one a prediction
};

// Text to print on standard output, after which the command is done (--help, --version).
struct PrintText {
  std::string text;
};

using ParsedCommand = std::variant<PrintText, InfoOptions, EvalOptions, TraceOptions, ReportOptions,
                                   BenchOptions, SelectOptions, TasksOptions, PlanOptions>;

// UsageError: one line that names the option (or FILE:LINE: KEY), both values, and what to do.
ParsedCommand parse_command_line(int argc, const char* const* argv);

}  // namespace tessera
