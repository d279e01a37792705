#include "jobs/recorder.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "io/trace_writer.hpp"
#include "jobs/run_identity.hpp"
#include "jobs/sample_record.hpp"
#include "jobs/summary.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

constexpr double kTraceIntervalSeconds = 60;

}  // namespace

Recorder::Recorder(const EvalOptions& options, const ModelSetup& model, const AttentionSetup& attention,
                   const std::vector<const Task*>& tasks, const GridShape& shape,
                   const std::string& command_line, Log& log)
    : options_(options),
      model_(model),
      attention_(attention),
      tasks_(tasks),
      shape_(shape),
      log_(log),
      key_(make_run_key(options, model, attention, tasks)) {
  // Found here, and not when the finished trace is renamed over it.
  if (std::filesystem::is_directory(options.trace)) {
    throw UsageError("--trace {}: it is a folder; name a file, such as {}/out.h5", options.trace,
                     options.trace);
  }
  JournalWriter::Options journal;
  journal.fresh = options.fresh;
  journal.notice = [&log](const std::string& message) { log.warn("{}", message); };
  journal_.emplace(options.trace, key_, configuration_json(options, model, attention, command_line), journal);
}

Recorder::~Recorder() {
  if (!progress_ && journal_ && !journal_->resumed()) std::remove(journal_path_of(options_.trace).c_str());
}

std::vector<PendingSample> Recorder::pending() const {
  std::vector<PendingSample> left;
  for (std::int64_t point = 0; point < static_cast<std::int64_t>(tasks_.size()); ++point) {
    const Task& task = *tasks_[static_cast<std::size_t>(point)];
    for (std::int64_t sample = 0; sample < samples_of(task, options_.samples); ++sample) {
      if (!journal_->is_done(point, sample)) left.push_back({point, sample});
    }
  }
  return left;
}

void Recorder::begin(std::vector<AttemptRank> ranks, std::vector<PreparedSample> samples,
                     std::int64_t weight_bytes) {
  samples_ = std::move(samples);
  weight_bytes_ = weight_bytes;
  std::int64_t total = 0;
  for (const Task* task : tasks_) total += samples_of(*task, options_.samples);
  done_ = total - static_cast<std::int64_t>(samples_.size());
  for (const Task* task : tasks_)
    journal_->add_point(make_point(options_, model_, attention_, *task, shape_, key_));
  journal_->append_attempt(std::move(ranks));
  const std::string label = tasks_.size() == 1 ? std::string(tasks_.front()->name) : "eval";
  progress_ = std::make_unique<Progress>(label, "samples", total, done_, standard_error_progress());
  progress_->update(done_);
}

void Recorder::expect(const GridPlan& plan, const Machine& machine) {
  plan_ = plan;
  machine_ = machine;
}

std::vector<Request> Recorder::requests() const {
  std::vector<Request> requests;
  for (std::size_t i = 0; i < samples_.size(); ++i) {
    const Task& task = *tasks_[static_cast<std::size_t>(samples_[i].which.point)];
    const auto& asked = options_.diagnose;
    const bool diagnose = std::find(asked.begin(), asked.end(), samples_[i].which.sample) != asked.end();
    requests.push_back(
        {static_cast<std::int64_t>(i), samples_[i].content.tokens, max_output_of(options_, task), diagnose});
  }
  return requests;
}

// Once a run: layers whose ranks needed so much that everything travelled.
void Recorder::say_gathered(const Completion& completion) {
  if (said_gathered_ || attention_.plan.exchange != ExchangeMode::kAuto || completion.ranks.empty()) return;
  std::size_t gathered = 0;
  const ExchangeCounts& first = completion.ranks.front().exchange;
  for (std::size_t layer = 0; layer < first.bytes_needed.size(); ++layer) {
    // A rank may need all of it; that all do, and nothing was left out, is an all-gather.
    gathered +=
        std::all_of(completion.ranks.begin(), completion.ranks.end(), [layer](const RankReport& rank) {
          return rank.exchange.bytes_selected[layer] == rank.exchange.bytes_full[layer];
        });
  }
  if (gathered == 0) return;
  said_gathered_ = true;
  log_.warn("--exchange auto: {} of {} layers needed nearly everything and gathered it", gathered,
            first.bytes_needed.size());
}

void Recorder::record(const Completion& completion) {
  const PreparedSample& sample = samples_[static_cast<std::size_t>(completion.id)];
  const Task& task = *tasks_[static_cast<std::size_t>(sample.which.point)];
  const SampleRecord record = make_sample_record(
      {&options_, &model_, &task, &sample, &completion, &attention_.plan, shape_, weight_bytes_});
  say_gathered(completion);
  measured_.add(completion);
  journal_->append_sample(record);
  ++done_;
  ++scored_;
  score_sum_ += record.score;
  progress_->update(done_, score_text());
}

void Recorder::idle() {
  progress_->update(done_, score_text());
  if (done_ > in_trace_ && seconds_since(trace_written_) > kTraceIntervalSeconds) derive_trace();
}

void Recorder::end(const char* reason) {
  if (progress_) {
    progress_->finish();
    journal_->append_end(reason);
  }
  derive_trace();
}

void Recorder::print_summary(double seconds) const {
  const JournalContents contents = read_journal(journal_path_of(options_.trace));
  for (std::size_t point = 0; point < contents.points.size(); ++point) {
    const PointInfo& info = contents.points[point];
    // The tasks of a run share its time.
    TaskSummary summary{info.task, "score", info.length, 0, 0, contents.points.size() == 1 ? seconds : 0};
    std::vector<double> scores, prefill, decode;
    for (const SampleRecord& sample : contents.samples) {
      if (sample.point != static_cast<std::int64_t>(point)) continue;
      summary.metric = sample.metric;
      summary.format_errors += !sample.format_ok;
      summary.failed += !sample.error.empty();
      if (sample.error.empty()) scores.push_back(sample.score);
      if (info.prefill != "dense") prefill.push_back(sample.prefill_sparsity);
      if (info.decode != "dense") decode.push_back(sample.decode_sparsity);
    }
    summary.prefill_sparsity = mean_of_known(prefill);
    summary.decode_sparsity = mean_of_known(decode);
    fmt::print("{}\n", summary_line(summary, mean_interval(scores)));
  }
  if (contents.points.size() > 1) {
    fmt::print("{} tasks, {} samples, {}\n", contents.points.size(), contents.samples.size(),
               duration_text(seconds));
  }
  if (plan_) fmt::print("{}", beside_text(*plan_, machine_, measured_));
  fmt::print("trace {}\n", options_.trace);
}

std::string Recorder::score_text() const {
  return scored_ > 0 ? fmt::format("score {:.3f}", score_sum_ / static_cast<double>(scored_)) : "";
}

void Recorder::derive_trace() {
  const JournalContents contents = read_journal(journal_path_of(options_.trace));
  write_trace(contents, options_.trace);
  in_trace_ = done_;
  trace_written_ = HostClock::now();
}

}  // namespace tessera
