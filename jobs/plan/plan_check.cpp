#include "jobs/plan/plan_check.hpp"

#include <algorithm>
#include <filesystem>

#include <fmt/format.h>

#include "jobs/attention_setup.hpp"
#include "jobs/model_setup.hpp"
#include "jobs/output_place.hpp"
#include "jobs/plan/plan_sparsity.hpp"
#include "jobs/run_identity.hpp"
#include "jobs/tasks/task_set.hpp"
#include "jobs/tasks_options.hpp"
#include "runtime/model/checkpoint_tensors.hpp"

namespace tessera {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kStudyOutput = 1024;  // tokens of an answer, at most
constexpr std::size_t kMostTensorLines = 20;

class PlanCheck {
 public:
  explicit PlanCheck(const PlanOptions& options) : plan_(options), options_(options.eval) {}

  PlanSetup run() {
    attempt([&] { open_tasks(); });
    attempt([&] { config_ = read_model_config(options_.model); });
    if (config_) {
      attempt([&] { check_rope(); });
      attempt([&] { check_heads(); });
      attempt([&] { check_weights(); });
      if (options_.length > 0)
        attempt([&] { attention_.emplace(set_up_attention(options_, *config_, tasks_)); });
    }
    attempt([&] { check_tokenizer(); });
    attempt([&] { check_dump_folder(options_.dump_selections); });
    if (!options_.trace.empty()) attempt([&] { check_place(); });
    if (setup_.findings.empty()) describe();
    return std::move(setup_);
  }

 private:
  template <class Check>
  void attempt(const Check& check) {
    try {
      check();
    } catch (const Error& error) {
      find(error.code(), error.what());
    }
  }

  void find(ExitCode code, std::string text) { setup_.findings.push_back({code, std::move(text)}); }

  // Without tasks only the length is known, and answers are as long as the study allows.
  void open_tasks() {
    if (options_.tasks.empty() && options_.samples_from.empty()) {
      if (options_.length == 0) throw UsageError("--length N: missing; `tessera plan` needs it");
    } else {
      check_task_options(options_, "plan");
      check_settings(options_.settings);
      task_set_ = TaskSet::open(options_);
      tasks_ = task_set_.tasks();
    }
    output_tokens_ = options_.max_output_tokens > 0 ? options_.max_output_tokens
                     : tasks_.empty()               ? kStudyOutput
                                                    : 1;
    for (const Task* task : tasks_) output_tokens_ = std::max(output_tokens_, max_output_of(options_, *task));
    options_.max_output_tokens = output_tokens_;  // what budgets are solved for
  }

  void check_rope() {
    const std::int64_t total = options_.length + output_tokens_;
    const EffectiveRope rope = resolve_rope(*config_, options_.rope, total);
    check_positions(rope, total);
    setup_.rope = rope.description;
  }

  void check_heads() {
    if (options_.tp > 0) check_tensor_parallel(*config_, options_.tp);
  }

  void check_weights() {
    std::vector<DType> file;
    if (!options_.weights.random) {
      CheckpointReport report = inspect_checkpoint(options_.model, *config_);
      const std::size_t shown = std::min(report.problems.size(), kMostTensorLines);
      for (std::size_t i = 0; i < shown; ++i) find(ExitCode::kInput, report.problems[i]);
      if (report.problems.size() > shown) {
        find(ExitCode::kInput, fmt::format("{}: {} more tensors do not match config.json", options_.model,
                                           report.problems.size() - shown));
      }
      if (!report.problems.empty()) return;
      file = std::move(report.dtypes);
    }
    weights_ = kept_weights(options_, *config_, file);
  }

  // Drawn weights need no tokenizer to be planned with, but eval will.
  void check_tokenizer() {
    const std::string path = options_.model + "/tokenizer.json";
    if (options_.weights.random && !fs::exists(path)) {
      setup_.notes.push_back(path + " is not there: eval will need it");
      return;
    }
    if (config_)
      read_tokenizer(options_.model, *config_);
    else
      Tokenizer::load(path);
  }

  void check_place() {
    if (fs::is_directory(options_.trace))
      throw UsageError("--trace {}: it is a folder; name a file", options_.trace);
    check_writable(options_.trace);
    if (!config_) return;
    std::int64_t samples = tasks_.empty() ? options_.samples : 0;
    for (const Task* task : tasks_) samples += samples_of(*task, options_.samples);
    const double needed = output_bytes(*config_, plan_.ranks, samples, output_tokens_);
    const double room = static_cast<double>(room_beside(options_.trace));
    if (needed <= room) return;
    throw ResourceError(
        "disk: journal and trace of {} samples may take {:.3f} GB beside {}, where {:.3f} GB are free, "
        "{:.3f} "
        "GB too little; choose another --trace or fewer --samples",
        samples, needed / 1e9, options_.trace, room / 1e9, (needed - room) / 1e9);
  }

  void describe() {
    PlanProblem problem =
        plan_problem(options_, *config_, *attention_, weights_, output_tokens_, plan_.ranks);

    fs::path path = fs::absolute(options_.model).lexically_normal();
    if (!path.has_filename()) path = path.parent_path();
    setup_.model_name = path.filename().string();
    setup_.prefill = sparsity_text(problem.attention.prefill, problem.prefill);
    setup_.decode = sparsity_text(problem.attention.decode, problem.decode);
    for (const std::string& note :
         {sparsity_note(problem.attention.prefill, attention_->prefill, problem.prefill),
          sparsity_note(problem.attention.decode, attention_->decode, problem.decode)}) {
      if (!note.empty()) setup_.notes.push_back(note);
    }
    setup_.problem = std::move(problem);
  }

  static std::string sparsity_text(const MethodSettings& settings, const PhaseSparsity& sparsity) {
    const Method& method = settings.method();
    if (!is_sparse(method)) return std::string(method.name);
    if (sparsity.source == SparsitySource::kUnknown) return fmt::format("{} (sparsity unknown)", method.name);
    return fmt::format("{} (sparsity {:.4f}, {})", method.name, sparsity.value, name_of(sparsity.source));
  }

  const PlanOptions& plan_;
  EvalOptions options_;  // completed by the file of --samples-from
  PlanSetup setup_;
  TaskSet task_set_;
  std::vector<const Task*> tasks_;
  std::int64_t output_tokens_ = kStudyOutput;
  std::optional<ModelConfig> config_;
  std::optional<AttentionSetup> attention_;
  KeptWeights weights_;
};

}  // namespace

PlanSetup check_plan(const PlanOptions& options) {
  return PlanCheck(options).run();
}

PlanProblem plan_problem(const EvalOptions& options, const ModelConfig& config,
                         const AttentionSetup& attention, const KeptWeights& weights,
                         std::int64_t output_tokens, int ranks) {
  PlanProblem problem;
  problem.config = config;
  problem.attention = attention.plan;
  problem.prefill = phase_sparsity(attention.plan.prefill, attention.prefill, options.length);
  problem.decode = phase_sparsity(attention.plan.decode, attention.decode, options.length);
  problem.weights = weights;
  problem.length = options.length;
  problem.output_tokens = output_tokens;
  problem.batch = options.batch;
  problem.on_gpu = options.device == DeviceKind::kCuda;
  problem.dtype = options.dtype;
  problem.kv_dtype = options.kv_dtype;
  problem.ranks = ranks;
  problem.tp = options.tp;
  problem.sp = options.sp;
  problem.dp = options.dp;
  return problem;
}

ExitCode code_of(const std::vector<Finding>& findings) {
  for (const ExitCode code : {ExitCode::kInput, ExitCode::kUsage, ExitCode::kResource}) {
    if (std::any_of(findings.begin(), findings.end(), [&](const Finding& f) { return f.code == code; }))
      return code;
  }
  return findings.empty() ? ExitCode::kDone : findings.front().code;
}

// The arrays of DESIGN.md section 6, 8 bytes a value: op_s (Ph, L+1, A, O = 10), 5 of (L, H), one of (L, K),
// 6 of (L, A). Neither file's compression is counted on; the journal has them in base64, 4/3 of that, and
// both hold the text, of which a token is some 8 bytes.
double output_bytes(const ModelConfig& config, int ranks, std::int64_t samples, std::int64_t output_tokens) {
  const double layers = static_cast<double>(config.layers), rows = ranks;
  const double values = 2 * (layers + 1) * rows * 10 + 5 * layers * static_cast<double>(config.heads) +
                        layers * static_cast<double>(config.kv_heads) + 6 * layers * rows;
  const double text = 4096 + 8 * static_cast<double>(output_tokens);
  constexpr double kFixed = 1 << 20;  // configuration, attempts, scales
  return kFixed + static_cast<double>(samples) * (8 * values * (1 + 4.0 / 3) + 2 * text);
}

}  // namespace tessera
