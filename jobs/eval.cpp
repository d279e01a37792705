#include "jobs/eval.hpp"

#include <fmt/core.h>
#include <omp.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>

#include "io/journal.hpp"
#include "io/trace_writer.hpp"
#include "jobs/eval_samples.hpp"
#include "jobs/info.hpp"
#include "jobs/log.hpp"
#include "jobs/model_setup.hpp"
#include "jobs/progress.hpp"
#include "jobs/run_identity.hpp"
#include "jobs/sample_record.hpp"
#include "jobs/sample_service.hpp"
#include "jobs/stop_signal.hpp"
#include "jobs/summary.hpp"
#include "parallel/agreement.hpp"
#include "parallel/watchdog.hpp"
#include "runtime/core/host.hpp"
#include "runtime/model/engine.hpp"

namespace tessera {
namespace {

constexpr double kTraceIntervalSeconds = 60;

// Rank 0's record of the run: the journal, the trace derived from it and what the user sees.
class Recorder {
 public:
  Recorder(const EvalOptions& options, const ModelSetup& model, const std::vector<const Task*>& tasks,
           const GridShape& shape, const std::string& command_line, Log& log)
      : options_(options),
        model_(model),
        tasks_(tasks),
        shape_(shape),
        key_(make_run_key(options, model, tasks)) {
    // Found here, and not when the finished trace is renamed over it.
    if (std::filesystem::is_directory(options.trace)) {
      throw UsageError("--trace {}: it is a folder; name a file, such as {}/out.h5", options.trace, options.trace);
    }
    JournalWriter::Options journal;
    journal.fresh = options.fresh;
    journal.notice = [&log](const std::string& message) { log.warn("{}", message); };
    journal_.emplace(options.trace, key_, configuration_json(options, model, command_line), journal);
  }

  // A run that was refused before its first attempt leaves no journal: its key would stand in the way of the
  // corrected command.
  ~Recorder() {
    if (!progress_ && journal_ && !journal_->resumed()) std::remove(journal_path_of(options_.trace).c_str());
  }
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  std::vector<PendingSample> pending() const {
    std::vector<PendingSample> left;
    for (std::int64_t point = 0; point < static_cast<std::int64_t>(tasks_.size()); ++point) {
      for (std::int64_t sample = 0; sample < options_.samples; ++sample) {
        if (!journal_->is_done(point, sample)) left.push_back({point, sample});
      }
    }
    return left;
  }

  void begin(std::vector<AttemptRank> ranks, std::vector<PreparedSample> samples, std::int64_t weight_bytes) {
    samples_ = std::move(samples);
    weight_bytes_ = weight_bytes;
    const std::int64_t total = options_.samples * static_cast<std::int64_t>(tasks_.size());
    done_ = total - static_cast<std::int64_t>(samples_.size());
    for (const Task* task : tasks_) journal_->add_point(make_point(options_, model_, *task, shape_, key_));
    journal_->append_attempt(std::move(ranks));
    progress_ = std::make_unique<Progress>(label(), "samples", total, done_, standard_error_progress());
    progress_->update(done_);
  }

  std::vector<Request> requests() const {
    std::vector<Request> requests;
    for (std::size_t i = 0; i < samples_.size(); ++i) {
      const Task& task = *tasks_[static_cast<std::size_t>(samples_[i].which.point)];
      requests.push_back(
          {static_cast<std::int64_t>(i), samples_[i].content.tokens, max_output_of(options_, task)});
    }
    return requests;
  }

  // From the service's thread, one at a time. When this returns the sample is on disk.
  void record(const Completion& completion) {
    const PreparedSample& sample = samples_[static_cast<std::size_t>(completion.id)];
    const Task& task = *tasks_[static_cast<std::size_t>(sample.which.point)];
    const SampleRecord record =
        make_sample_record({&options_, &model_, &task, &sample, &completion, shape_, weight_bytes_});
    journal_->append_sample(record);
    ++done_;
    score_sum_ += record.score;
    ++scored_;
    progress_->update(done_, fmt::format("score {:.3f}", score_sum_ / static_cast<double>(scored_)));
  }

  void idle() {
    progress_->update(
        done_, scored_ > 0 ? fmt::format("score {:.3f}", score_sum_ / static_cast<double>(scored_)) : "");
    if (done_ > in_trace_ && seconds_since(trace_written_) > kTraceIntervalSeconds) derive_trace();
  }

  void end(const char* reason) {
    if (progress_) {
      progress_->finish();
      journal_->append_end(reason);
    }
    derive_trace();
  }

  // One line a task from all samples that the journal holds, and where the trace is.
  void print_summary(double seconds) const {
    const JournalContents contents = read_journal(journal_path_of(options_.trace));
    for (std::size_t point = 0; point < contents.points.size(); ++point) {
      const PointInfo& info = contents.points[point];
      TaskSummary summary{info.task, "score", info.length, 0, 0, seconds};
      std::vector<double> scores;
      for (const SampleRecord& sample : contents.samples) {
        if (sample.point != static_cast<std::int64_t>(point)) continue;
        summary.metric = sample.metric;
        summary.format_errors += !sample.format_ok;
        if (sample.error.empty())
          scores.push_back(sample.score);
        else
          ++summary.failed;
      }
      fmt::print("{}\n", summary_line(summary, mean_interval(scores)));
    }
    fmt::print("trace {}\n", options_.trace);
  }

 private:
  std::string label() const { return tasks_.size() == 1 ? std::string(tasks_.front()->name) : "eval"; }

  void derive_trace() {
    const JournalContents contents = read_journal(journal_path_of(options_.trace));
    write_trace(contents, options_.trace);
    in_trace_ = done_;
    trace_written_ = HostClock::now();
  }

  const EvalOptions& options_;
  const ModelSetup& model_;
  const std::vector<const Task*>& tasks_;
  GridShape shape_;
  RunKey key_;
  std::optional<JournalWriter> journal_;
  std::vector<PreparedSample> samples_;
  std::unique_ptr<Progress> progress_;
  std::int64_t weight_bytes_ = 0;
  std::int64_t done_ = 0;
  std::int64_t in_trace_ = 0;
  std::int64_t scored_ = 0;
  double score_sum_ = 0;
  HostClock::time_point trace_written_ = HostClock::now();
};

std::vector<const Task*> find_tasks(const EvalOptions& options) {
  std::vector<const Task*> tasks;
  for (const std::string& name : options.tasks) tasks.push_back(&find_task(name));
  return tasks;
}

std::string rope_text(const RopeChoice& rope) {
  switch (rope.kind) {
    case RopeChoice::Kind::kAuto:
      return "auto";
    case RopeChoice::Kind::kConfig:
      return "config";
    case RopeChoice::Kind::kYarn:
      break;
  }
  return fmt::format("yarn:{}", rope.yarn_factor);
}

std::int64_t longest_output(const EvalOptions& options, const std::vector<const Task*>& tasks) {
  std::int64_t longest = 0;
  for (const Task* task : tasks) longest = std::max(longest, max_output_of(options, *task));
  return longest;
}

void choose_threads(const EvalOptions& options, const LaunchEnvironment& launch) {
  if (options.threads > 0) {
    omp_set_num_threads(options.threads);
  } else if (std::getenv("OMP_NUM_THREADS") == nullptr) {
    omp_set_num_threads(std::max(1, collect_host_info().bound_count / std::max(1, launch.local_size)));
  }
}

MemoryRequest memory_request(const EvalOptions& options, const ModelConfig& config, const GridShape& shape,
                             std::int64_t max_tokens) {
  MemoryRequest request;
  request.shape = shape;
  request.prompt_tokens = options.length;
  request.max_tokens = max_tokens;
  request.batch = options.batch;
  request.weights_copied =
      options.weights.random || (!options.weights_dtype.as_file && config.dtype != DType::kF32);
  request.weight_element_bytes = static_cast<std::int64_t>(
      size_of(options.weights_dtype.as_file ? config.dtype : options.weights_dtype.dtype));
  request.kv_dtype = options.kv_dtype;
  return request;
}

// One replica's work. True when the queue ran dry, false when it was asked to stop.
bool answer_requests(const EvalOptions& options, const ModelSetup& model, const Weights& weights, Grid& grid,
                     MemoryMeter& meter, std::int64_t max_tokens, MessageChannel& channel,
                     const std::function<bool()>& stop_requested) {
  const HeadShare share = head_share(model.config, grid.place.tp, grid.shape.tp);
  const KvShape kv{static_cast<int>(model.config.layers), static_cast<int>(share.kv_heads),
                   static_cast<int>(model.config.head_dim), options.kv_dtype};
  KvCache cache(
      kv, kv_slots_needed(model.config, share, grid.shape, options.length, max_tokens, options.batch), meter);
  Transformer transformer(model.config, model.rope.rope, weights, grid, cache, max_tokens, meter);
  Engine engine(transformer, cache, grid, meter, {options.batch, model.config.eos_ids});

  Watchdog watchdog(std::chrono::milliseconds(static_cast<std::int64_t>(options.timeout_s * 1000)),
                    grid.world->rank(), host_name());
  transformer.set_listener(
      [&watchdog](Phase, int layer, Operation operation) { watchdog.beat(name_of(operation), layer); });
  const Watchdog::Work work = watchdog.work("first request");
  ServedRequests source(channel, stop_requested);
  const bool dry = engine.run(grid.is_group_leader() ? &source : nullptr);
  if (grid.is_group_leader()) source.leave();
  return dry;
}

}  // namespace

ExitCode run_eval(const EvalOptions& options, MpiSession& session, const std::string& command_line) {
  const auto started = HostClock::now();
  install_stop_signals();
  choose_threads(options, session.launch());
  std::unique_ptr<Communicator> world = session.world();
  const bool first_rank = world->rank() == 0;

  GridShape shape;
  std::optional<Log> log;
  std::optional<ModelSetup> model;
  std::vector<const Task*> tasks;
  std::int64_t max_tokens = 0;
  run_agreed(*world, [&] {
    if (options.device == DeviceKind::kCuda) {
      throw UsageError("--device cuda: models do not run on the CUDA backend yet; use --device cpu");
    }
    shape = solve_grid(options.tp, options.sp, options.dp, world->size());
    log.emplace(world->rank(), host_name(), options.log_dir);
    tasks = find_tasks(options);
    max_tokens = options.length + longest_output(options, tasks);
    model.emplace(read_model_setup(options.model, rope_text(options.rope), max_tokens));
    check_tensor_parallel(model->config, shape.tp);
    if (!options.weights.random) check_checkpoint(options.model, model->config);
    check_memory(plan_memory(model->config, memory_request(options, model->config, shape, max_tokens)),
                 session.launch().local_size);
  });

  std::optional<Recorder> recorder;
  run_agreed(*world, [&] {
    if (first_rank) recorder.emplace(options, *model, tasks, shape, command_line, *log);
  });
  TaskContext context;
  context.tokenizer = &model->tokenizer;
  context.family = model->chat;
  context.length = options.length;
  context.seed = options.seed;
  context.style = options.prompt_style;
  context.settings = options.settings;
  std::vector<PreparedSample> samples = prepare_samples(
      *world, first_rank ? recorder->pending() : std::vector<PendingSample>{}, tasks, context);
  std::int64_t left = static_cast<std::int64_t>(samples.size());
  world->broadcast(&left, sizeof left, 0);
  log->info("{} samples to do, prepared in {:.2f} s", left, seconds_since(started));
  if (left == 0) {
    run_agreed(*world, [&] {
      if (!first_rank) return;
      recorder->end("done");
      recorder->print_summary(seconds_since(started));
    });
    return ExitCode::kDone;
  }

  Grid grid = make_grid(session, shape);
  MemoryMeter meter;
  const auto load_started = HostClock::now();
  LoadOptions load;
  if (options.weights.random) load.random_seed = options.weights.seed;
  load.as_f32 = !options.weights_dtype.as_file;
  const Weights weights = load_weights(options.model, model->config, load, *grid.tp, meter);
  log->info("weights of {} bytes in {:.2f} s", weights.bytes, seconds_since(load_started));
  std::int64_t weight_bytes = weights.bytes;
  grid.tp->all_reduce_sum(&weight_bytes, 1);
  std::vector<AttemptRank> attempt = gather_attempt(options, session, grid, command_line);
  run_agreed(*world, [&] {
    if (first_rank) recorder->begin(std::move(attempt), std::move(samples), weight_bytes);
  });

  const auto stop_requested = [&] {
    return stop_signalled() || (options.max_time_s > 0 && seconds_since(started) > options.max_time_s);
  };
  std::unique_ptr<MessageChannel> channel = session.message_channel();
  std::unique_ptr<SampleService> service;
  if (first_rank) {
    SampleService::Callbacks callbacks;
    callbacks.record = [&](Completion completion) { recorder->record(completion); };
    callbacks.idle = [&] { recorder->idle(); };
    callbacks.stop_requested = stop_requested;
    callbacks.failed = [&](std::exception_ptr failure) {
      try {
        std::rethrow_exception(failure);
      } catch (const Error& error) {
        log->error(error.what());
        session.abort(error.code());
      } catch (const std::exception& error) {
        log->error(error.what());
        session.abort(ExitCode::kInternal);
      }
    };
    service = std::make_unique<SampleService>(*channel, recorder->requests(), shape.dp, std::move(callbacks));
  }
  const bool dry =
      answer_requests(options, *model, weights, grid, meter, max_tokens, *channel, stop_requested);
  if (service) service->wait();
  std::int64_t stopped = !dry;
  world->all_reduce_max(&stopped, 1);
  run_agreed(*world, [&] {
    if (!first_rank) return;
    recorder->end(stopped ? "stopped" : "done");
    recorder->print_summary(seconds_since(started));
  });
  return stopped ? ExitCode::kStopped : ExitCode::kDone;
}

}  // namespace tessera
