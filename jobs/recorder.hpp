// Rank 0's record of a run: the journal, the trace derived from it and what the user sees.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/journal.hpp"
#include "jobs/attention_setup.hpp"
#include "jobs/eval_samples.hpp"
#include "jobs/log.hpp"
#include "jobs/model_setup.hpp"
#include "jobs/options.hpp"
#include "jobs/plan/plan_beside.hpp"
#include "jobs/progress.hpp"
#include "runtime/model/completion.hpp"
#include "runtime/model/op_times.hpp"

namespace tessera {

class Recorder {
 public:
  // Opens the journal, or creates it: see JournalWriter for what is refused. What is given must outlive this.
  Recorder(const EvalOptions& options, const ModelSetup& model, const AttentionSetup& attention,
           const std::vector<const Task*>& tasks, const GridShape& shape, const std::string& command_line,
           Log& log);
  // A run that was refused before its first attempt leaves no journal: its key would stand in the way of the
  // corrected command.
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  std::vector<PendingSample> pending() const;  // samples of the run that the journal does not hold

  void begin(std::vector<AttemptRank> ranks, std::vector<PreparedSample> samples, std::int64_t weight_bytes);
  std::vector<Request> requests() const;  // request i asks sample i of begin

  // What a plan says of this run, printed by print_summary beside what was measured.
  void expect(const GridPlan& plan, const Machine& machine);

  // From one thread at a time. When record returns the sample is on disk.
  void record(const Completion& completion);
  void idle();  // progress, and the trace at intervals

  // Every sample of this attempt is on disk; a stop that was asked for meanwhile stopped nothing.
  bool all_recorded() const { return scored_ == static_cast<std::int64_t>(samples_.size()); }
  void end(const char* reason);  // of the attempt, if one began; derives the trace

  // One line a task from all samples that the journal holds, and where the trace is.
  void print_summary(double seconds) const;

 private:
  std::string score_text() const;
  void derive_trace();
  void say_gathered(const Completion& completion);

  const EvalOptions& options_;
  const ModelSetup& model_;
  const AttentionSetup& attention_;
  const std::vector<const Task*>& tasks_;
  GridShape shape_;
  Log& log_;
  RunKey key_;
  std::optional<JournalWriter> journal_;
  std::vector<PreparedSample> samples_;
  std::unique_ptr<Progress> progress_;  // from begin on
  std::int64_t weight_bytes_ = 0;       // of one replica
  std::int64_t done_ = 0;               // samples in the journal
  std::int64_t in_trace_ = 0;           // of them, in the trace
  std::int64_t scored_ = 0;             // by this attempt
  double score_sum_ = 0;
  std::optional<GridPlan> plan_;
  Machine machine_;
  RunMeasures measured_;  // by this attempt
  bool said_gathered_ = false;
  HostClock::time_point trace_written_ = HostClock::now();
};

}  // namespace tessera
