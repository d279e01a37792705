#include "jobs/eval.hpp"

#include <fmt/core.h>
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>

#include "io/journal.hpp"
#include "jobs/attention_setup.hpp"
#include "jobs/eval_samples.hpp"
#include "jobs/info.hpp"
#include "jobs/log.hpp"
#include "jobs/model_setup.hpp"
#include "jobs/output_place.hpp"
#include "jobs/plan/plan_check.hpp"
#include "jobs/recorder.hpp"
#include "jobs/run_identity.hpp"
#include "jobs/sample_service.hpp"
#include "jobs/selection_dump.hpp"
#include "jobs/stop_signal.hpp"
#include "jobs/tasks/task_set.hpp"
#include "jobs/threads.hpp"
#include "parallel/agreement.hpp"
#include "parallel/watchdog.hpp"
#include "runtime/core/host.hpp"
#include "runtime/model/checkpoint_tensors.hpp"
#include "runtime/model/device_replica.hpp"
#include "runtime/model/engine.hpp"
#include "runtime/model/memory_needs.hpp"
#include "runtime/model/transformer.hpp"

namespace tessera {
namespace {

std::int64_t longest_output(const EvalOptions& options, const std::vector<const Task*>& tasks) {
  std::int64_t longest = 0;
  for (const Task* task : tasks) longest = std::max(longest, max_output_of(options, *task));
  return longest;
}

// --threads, else OMP_NUM_THREADS, else this rank's part of the cores. Collective, whatever the environment
// of each rank says.
void choose_threads(const EvalOptions& options, Communicator& world, Log& log) {
  const CoreShare share = find_core_share(world);
  if (options.threads > 0) {
    omp_set_num_threads(options.threads);
  } else if (std::getenv("OMP_NUM_THREADS") == nullptr) {
    omp_set_num_threads(threads_of(share));
    if (const std::string warning = idle_cores_warning(share); !warning.empty()) log.warn("{}", warning);
  }
  log.info("{} threads", omp_get_max_threads());
}

RunShape run_shape(const EvalOptions& options, const GridShape& shape, std::int64_t max_tokens) {
  return {shape, options.length, max_tokens, options.batch, options.kv_dtype};
}

// The configuration that a journal to be resumed began with; empty where there is none. Rank 0 reads it for
// all. Collective.
std::string recorded_configuration(const EvalOptions& options, Communicator& world) {
  std::string text;
  run_agreed(world, [&] {
    const std::string path = journal_path_of(options.trace);
    if (world.rank() == 0 && !options.fresh && std::filesystem::exists(path))
      text = read_journal(path).configuration;
  });
  std::size_t bytes = text.size();
  world.broadcast(&bytes, sizeof bytes, 0);
  text.resize(bytes);
  world.broadcast(text.data(), bytes, 0);
  return text;
}

// A model that is ready to run: its cache, planned for the run, and its transformer.
struct Replica {
  Replica(const ModelSetup& model, const AttentionPlan& plan, const RunShape& run, const Weights& weights,
          Grid& grid, MemoryMeter& meter)
      : cache(kv_shape(model.config, plan, run, grid), kv_slots_needed(model.config, run, plan), meter),
        transformer(model.config, model.rope.rope, weights, grid, cache, run.max_tokens, meter, plan) {}

  static KvShape kv_shape(const ModelConfig& config, const AttentionPlan& plan, const RunShape& run,
                          const Grid& grid) {
    const HeadShare share = head_share(config, grid.place.tp, grid.shape.tp);
    return {static_cast<int>(config.layers), static_cast<int>(share.kv_heads),
            static_cast<int>(config.head_dim), run.kv_dtype, LayerPlans(plan, config).needs_page_bounds()};
  }

  KvCache cache;
  Transformer transformer;
};

// One run on one rank; its steps in the order in which they are called.
class EvalRun {
 public:
  EvalRun(const EvalOptions& options, MpiSession& session, const std::string& command_line)
      : options_(options), session_(session), command_line_(command_line), world_(session.world()) {}

  ExitCode run();

 private:
  void check();  // options, files and memory, before anything is written
  void check_gpu_run();
  void settle_budgets();  // those that only the journal or the model can tell
  void calibrate_budgets();
  TaskContext task_context() const;
  void open_journal();                           // rank 0
  void prepare();                                // the samples that are left to do
  void load();                                   // the grid and its weights
  void begin();                                  // the attempt
  void predict(const std::string& device_name);  // rank 0
  void answer();                                 // all requests, or until asked to stop
  void work_on_requests();
  ExitCode finish(bool stopped);
  bool stop_requested() const;
  std::unique_ptr<SampleService> start_service();

  bool is_first_rank() const { return world_->rank() == 0; }
  bool on_gpu() const { return options_.device == DeviceKind::kCuda; }
  MachineShare machine_share() const { return {session_.launch().local_rank, session_.launch().local_size}; }
  std::int64_t weight_bytes() const { return device_ ? device_->weight_bytes() : weights_.bytes; }

  EvalOptions options_;  // completed by the file of --samples-from
  MpiSession& session_;
  const std::string& command_line_;
  const HostClock::time_point started_ = HostClock::now();
  std::unique_ptr<Communicator> world_;

  GridShape shape_;
  std::optional<Log> log_;
  std::optional<ModelSetup> model_;
  TaskSet task_set_;
  std::vector<const Task*> tasks_;
  std::optional<AttentionSetup> attention_;
  std::int64_t max_tokens_ = 0;  // of a sequence, output included
  KeptWeights kept_weights_;
  std::optional<Recorder> recorder_;
  std::vector<PreparedSample> samples_;  // rank 0: handed to the recorder by load
  std::int64_t left_ = 0;                // samples to do, on every rank
  Grid grid_;
  MemoryMeter meter_;
  Weights weights_;                        // on the CPU
  std::unique_ptr<DeviceReplica> device_;  // on a GPU
  bool loaded_ = false;
  std::unique_ptr<MessageChannel> channel_;
};

ExitCode EvalRun::run() {
  install_stop_signals();
  check();
  choose_threads(options_, *world_, *log_);
  settle_budgets();
  open_journal();
  prepare();
  std::int64_t stopped = stop_requested();
  world_->all_reduce_max(&stopped, 1);
  if (left_ == 0) return finish(false);
  if (stopped) return ExitCode::kStopped;
  load();
  begin();
  answer();
  stopped = is_first_rank() && !recorder_->all_recorded();
  world_->broadcast(&stopped, sizeof stopped, 0);
  return finish(stopped);
}

bool EvalRun::stop_requested() const {
  return stop_signalled() || (options_.max_time_s > 0 && seconds_since(started_) > options_.max_time_s);
}

void EvalRun::check() {
  run_agreed(*world_, [&] {
    shape_ = solve_grid(options_.tp, options_.sp, options_.dp, world_->size());
    log_.emplace(world_->rank(), host_name(), options_.log_dir);
    task_set_ = TaskSet::open(options_);
    tasks_ = task_set_.tasks();
    max_tokens_ = options_.length + longest_output(options_, tasks_);
    model_.emplace(read_model_setup(options_.model, options_.rope, max_tokens_));
    attention_.emplace(set_up_attention(options_, model_->config, tasks_));
    check_dump_folder(options_.dump_selections);
    check_tensor_parallel(model_->config, shape_.tp);
    std::vector<DType> dtypes;  // of the files, which may differ from config.json's
    if (!options_.weights.random) dtypes = check_checkpoint(options_.model, model_->config);
    kept_weights_ = kept_weights(options_, model_->config, dtypes);
    if (on_gpu()) return check_gpu_run();
    const MemoryRequest request{run_shape(options_, shape_, max_tokens_), kept_weights_};
    const MemoryPlan memory = plan_memory(model_->config, request, attention_->plan);
    check_memory(memory, session_.launch().local_size);
    log_->info("{}", memory_text(memory));
  });
}

void EvalRun::check_gpu_run() {
  const DType dtype = model_->config.dtype;
  if (!options_.weights_dtype.as_file || (options_.kv_dtype != DType::kF32 && options_.kv_dtype != dtype)) {
    throw UsageError(
        "--weights-dtype and --kv-dtype: with --device cuda weights, keys and values have the model's dtype, "
        "{}; leave both out",
        name_of(dtype));
  }
  check_device_run(model_->config, attention_->plan, run_shape(options_, shape_, max_tokens_),
                   machine_share());
  options_.kv_dtype = dtype;
}

void EvalRun::settle_budgets() {
  if (!attention_->needs_calibration()) return;
  const std::string recorded = recorded_configuration(options_, *world_);
  if (recorded.empty()) return calibrate_budgets();
  run_agreed(*world_, [&] {
    // Where this journal froze no budget it is of another run, and opening it says so.
    adopt_frozen_budgets(*attention_, recorded, journal_path_of(options_.trace));
  });
}

// A ladder of budgets over prompts that no sample of the run has.
void EvalRun::calibrate_budgets() {
  run_agreed(*world_, [&] { check_writable(options_.trace); });
  load();
  std::vector<TaskSample> prompts;
  // Tasks that ask what a file holds have no prompts beside those: ruler_niah's, of the same length, stand
  // in.
  std::vector<const Task*> tasks;
  for (const Task* task : tasks_) {
    if (task->available == 0) tasks.push_back(task);
  }
  if (tasks.empty()) tasks.push_back(&find_task("ruler_niah"));
  run_agreed(*world_, [&] { prompts = calibration_prompts(tasks, task_context()); });
  log_->info("calibrating on {} prompts", prompts.size());
  RunShape run = run_shape(options_, shape_, max_tokens_);
  run.batch = 1;
  std::optional<Replica> on_cpu;
  std::unique_ptr<LanguageModel> on_device;
  if (device_) {
    on_device = device_->make_model(model_->rope.rope, attention_->plan, run);
  } else {
    on_cpu.emplace(*model_, attention_->plan, run, weights_, grid_, meter_);
  }
  LanguageModel& model = device_ ? *on_device : on_cpu->transformer;
  const auto prefill = [&](std::span<const std::int32_t> tokens, std::span<const MethodSettings> ladder,
                           std::vector<PairTotals>* totals) {
    const std::int64_t length = static_cast<std::int64_t>(tokens.size());
    const SequencePartition partition(length, shape_.sp);
    const int sequence = model.add_sequence(max_tokens_);
    std::vector<float> logits;
    model.set_ladder(ladder, totals);
    model.prefill({sequence, &partition, tokens, {}}, logits);
    model.set_ladder({}, nullptr);
    model.remove_sequence(sequence);
  };
  calibrate(*attention_, prompts.size(),
            ladder_over_prompts(*world_, grid_.place.dp, shape_.dp, prompts, prefill));
}

void EvalRun::open_journal() {
  run_agreed(*world_, [&] {
    if (!is_first_rank()) return;
    recorder_.emplace(options_, *model_, *attention_, tasks_, shape_, command_line_, *log_);
    for (const std::string& note : attention_notes(*attention_)) log_->warn("{}", note);
  });
}

TaskContext EvalRun::task_context() const {
  TaskContext context;
  context.tokenizer = &model_->tokenizer;
  context.family = model_->chat;
  context.length = options_.length;
  context.seed = options_.seed;
  context.style = options_.prompt_style;
  context.settings = options_.settings;
  return context;
}

void EvalRun::prepare() {
  for (const Task* task : tasks_) {
    if (task->available > options_.samples) {
      log_->warn("{}: --samples takes the first {} of the {} in its file", task->name, options_.samples,
                 task->available);
    }
  }
  std::vector<PendingSample> pending = is_first_rank() ? recorder_->pending() : std::vector<PendingSample>{};
  left_ = static_cast<std::int64_t>(pending.size());
  world_->broadcast(&left_, sizeof left_, 0);
  samples_ = prepare_samples(*world_, std::move(pending), tasks_, task_context(),
                             [this] { return stop_requested(); });
  log_->info("{} samples to do, prepared in {:.2f} s", left_, seconds_since(started_));
}

void EvalRun::load() {
  if (loaded_) return;  // for calibration
  loaded_ = true;
  grid_ = make_grid(session_, shape_);
  const auto load_started = HostClock::now();
  std::optional<std::uint64_t> seed;
  if (options_.weights.random) seed = options_.weights.seed;
  if (on_gpu()) {
    device_ = load_device_replica(
        model_->config,
        {options_.model, seed, machine_share(), grid_.tp.get(), world_->rank(), options_.timeout_s}, meter_);
  } else {
    LoadOptions load;
    load.random_seed = seed;
    load.as_f32 = !options_.weights_dtype.as_file;
    weights_ = load_weights(options_.model, model_->config, load, *grid_.tp, meter_);
  }
  log_->info("weights of {} bytes in {:.2f} s", weight_bytes(), seconds_since(load_started));
}

void EvalRun::begin() {
  std::int64_t bytes = weight_bytes();
  grid_.tp->all_reduce_sum(&bytes, 1);
  std::vector<AttemptRank> attempt = gather_attempt(options_, session_, grid_, command_line_);
  run_agreed(*world_, [&] {
    if (!is_first_rank()) return;
    if (!options_.dump_selections.empty()) make_dump_folder(options_.dump_selections);
    predict(attempt.front().device_name);
    recorder_->begin(std::move(attempt), std::move(samples_), bytes);
  });
}

// With the batch that the samples left to do can fill.
void EvalRun::predict(const std::string& device_name) {
  if (options_.machine.machine.empty() && on_gpu()) options_.machine.machine = machine_of_device(device_name);
  const Machine machine = make_machine(options_.machine);
  PlanProblem problem = plan_problem(options_, model_->config, *attention_, kept_weights_,
                                     max_tokens_ - options_.length, shape_.ranks());
  problem.tp = shape_.tp;
  problem.sp = shape_.sp;
  problem.dp = shape_.dp;
  if (on_gpu()) problem.dtype = model_->config.dtype;
  PlanProblem filled = problem;
  const std::int64_t a_replica = (left_ + shape_.dp - 1) / shape_.dp;
  filled.batch = static_cast<int>(std::min<std::int64_t>(problem.batch, a_replica));
  const Plan plan = make_plan(filled, machine);
  if (plan.grids.empty()) return;
  GridPlan grid = plan.grids.front();
  // On a GPU it is set aside for every sequence of the batch.
  if (on_gpu()) grid.kv_used = make_plan(problem, machine).grids.front().kv_used;
  recorder_->expect(grid, machine);
}

void EvalRun::answer() {
  channel_ = session_.message_channel();
  std::unique_ptr<SampleService> service;
  if (is_first_rank()) service = start_service();
  work_on_requests();
  if (service) service->wait();
}

std::unique_ptr<SampleService> EvalRun::start_service() {
  SampleService::Callbacks callbacks;
  callbacks.record = [this](Completion completion) { recorder_->record(completion); };
  callbacks.idle = [this] { recorder_->idle(); };
  callbacks.stop_requested = [this] { return stop_requested(); };
  callbacks.failed = [this](std::exception_ptr failure) {
    try {
      std::rethrow_exception(failure);
    } catch (const Error& error) {
      log_->error(error.what());
      session_.abort(error.code());
    } catch (const std::exception& error) {
      log_->error(error.what());
      session_.abort(ExitCode::kInternal);
    }
  };
  return std::make_unique<SampleService>(*channel_, recorder_->requests(), shape_.dp, std::move(callbacks));
}

// This replica's work.
void EvalRun::work_on_requests() {
  const RunShape run = run_shape(options_, shape_, max_tokens_);
  std::optional<Replica> on_cpu;
  std::unique_ptr<LanguageModel> on_device;
  std::optional<SelectionDump> dump;
  if (device_) {
    on_device = device_->make_model(model_->rope.rope, attention_->plan, run);
  } else {
    on_cpu.emplace(*model_, attention_->plan, run, weights_, grid_, meter_);
  }
  LanguageModel& model = device_ ? *on_device : on_cpu->transformer;
  if (!options_.dump_selections.empty() && grid_.place.dp == 0) {
    dump.emplace(options_.dump_selections, model_->config, attention_->plan, grid_);
    model.set_selection_listener(&*dump);
  }
  Engine engine(model, grid_, meter_, {options_.batch, model_->config.eos_ids});

  Watchdog watchdog(std::chrono::milliseconds(static_cast<std::int64_t>(options_.timeout_s * 1000)),
                    world_->rank(), host_name());
  // Any wait for a GPU may be one for another rank whose collective is ahead of it.
  const bool always = device_ && shape_.tp > 1;
  model.set_listener([&watchdog, always](Phase, int layer, Operation operation) {
    const bool waits = always || operation == Operation::kExchange || operation == Operation::kCollective ||
                       operation == Operation::kEstimate || operation == Operation::kSelect;
    watchdog.beat(name_of(operation), layer, waits);
  });
  const Watchdog::Work work = watchdog.work("first request");
  ServedRequests source(*channel_, [this] { return stop_requested(); });
  engine.run(grid_.is_group_leader() ? &source : nullptr);
  if (grid_.is_group_leader()) source.leave();
}

ExitCode EvalRun::finish(bool stopped) {
  run_agreed(*world_, [&] {
    if (!is_first_rank()) return;
    recorder_->end(stopped ? "stopped" : "done");
    recorder_->print_summary(seconds_since(started_));
  });
  return stopped ? ExitCode::kStopped : ExitCode::kDone;
}

}  // namespace

ExitCode run_eval(const EvalOptions& options, MpiSession& session, const std::string& command_line) {
  return EvalRun(options, session, command_line).run();
}

}  // namespace tessera
