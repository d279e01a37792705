#include "runtime/model/engine.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "runtime/model/completion.hpp"

namespace tessera {
namespace {

double epoch_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

// A sequence that decodes.
struct Engine::Active {
  Active(std::int64_t prompt_tokens, int sp) : partition(prompt_tokens, sp) {}

  SequencePartition partition;
  int sequence = 0;  // handle in the cache
  std::int64_t max_output = 0;
  std::int32_t next_token = 0;
  std::int32_t position = 0;  // of next_token
  OpTimes times;
  ExchangeCounts exchange;
  AttentionCounts attention;
  DiagnosisSums diagnosis;
  bool diagnose = false;
  HostClock::time_point first_token_at;
  Completion completion;
};

// What the leader tells the group before every step.
struct Engine::Command {
  enum Kind : std::int32_t { kStep, kAdmit, kStop, kDry };
  Kind kind = kStep;
  std::int64_t id = 0;
  std::int64_t length = 0;
  std::int64_t max_output = 0;
  bool diagnose = false;
};

Engine::Engine(LanguageModel& model, Grid& grid, const MemoryMeter& meter, EngineOptions options)
    : model_(model), grid_(grid), meter_(meter), options_(std::move(options)) {}

Engine::~Engine() {
  for (const auto& active : active_) model_.remove_sequence(active->sequence);
}

bool Engine::run(RequestSource* source) {
  dry_ = false;
  for (;;) {
    const Command command = agree(source);
    switch (command.kind) {
      case Command::kStop:
        return false;
      case Command::kDry:
        return true;
      case Command::kAdmit:
        admit(command, source);
        break;
      case Command::kStep:
        step(source);
        break;
    }
  }
}

Engine::Command Engine::agree(RequestSource* source) {
  Command command;
  if (grid_.is_group_leader()) {
    const bool has_room = static_cast<int>(active_.size()) < options_.batch;
    if (source->stop_requested()) {
      command.kind = Command::kStop;
    } else {
      if (has_room && !dry_ && !incoming_) {
        incoming_ = source->next();
        dry_ = !incoming_;
      }
      if (incoming_) {
        command = {Command::kAdmit, incoming_->id, static_cast<std::int64_t>(incoming_->tokens.size()),
                   incoming_->max_output, incoming_->diagnose};
      } else if (active_.empty()) {
        command.kind = source->stop_requested() ? Command::kStop : Command::kDry;
      }
    }
  }
  grid_.group->broadcast(&command, sizeof command, 0);
  return command;
}

void Engine::admit(const Command& command, RequestSource* source) {
  const auto admitted_at = HostClock::now();
  auto active = std::make_unique<Active>(command.length, grid_.shape.sp);
  active->max_output = command.max_output;
  active->diagnose = command.diagnose;
  active->completion.id = command.id;
  active->completion.input_tokens = command.length;
  active->completion.started_epoch = epoch_seconds();

  std::vector<std::int32_t> tokens(static_cast<std::size_t>(command.length));
  if (grid_.is_group_leader()) {
    tokens = std::move(incoming_->tokens);
    incoming_.reset();
  }
  grid_.group->broadcast(tokens.data(), tokens.size() * sizeof(std::int32_t), 0);

  active->sequence = model_.add_sequence(command.length + command.max_output);
  active_.push_back(std::move(active));  // from here its blocks are given back whatever happens
  Active& current = *active_.back();
  std::vector<float> logits;
  std::vector<std::int32_t> first;
  const std::int64_t last_position = command.length - 1;
  model_.times().clear();
  const auto prefill_at = HostClock::now();
  PrefillRequest request{current.sequence, &current.partition, tokens, {&last_position, 1}};
  if (current.diagnose) request.diagnosis = &current.diagnosis;
  model_.prefill(request, logits);
  model_.greedy_tokens(first);
  current.times = model_.times();
  current.exchange = model_.exchange_counts();
  current.attention = model_.attention_counts();
  current.first_token_at = HostClock::now();
  current.completion.prefill_s = seconds_since(prefill_at);
  current.completion.first_token_s = seconds_since(admitted_at);
  current.position = static_cast<std::int32_t>(command.length);
  accept_token(current, first.front());
  complete_finished(source);
}

void Engine::step(RequestSource* source) {
  std::vector<DecodeRow> rows;
  for (const auto& active : active_) {
    rows.push_back(
        {active->sequence, &active->partition, active->position, active->next_token, nullptr, nullptr});
  }
  // All ranks chose the same tokens; the leader's are what counts should machines of a group differ.
  grid_.group->broadcast(rows.data(), rows.size() * sizeof(DecodeRow), 0);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Active& active = *active_[i];
    rows[i].partition = &active.partition;
    rows[i].counts = &active.attention;
    const bool is_first_step = active.attention.steps == 0;
    rows[i].diagnosis = active.diagnose && is_first_step ? &active.diagnosis : nullptr;
  }

  std::vector<float> logits;
  std::vector<std::int32_t> next;
  model_.times().clear();
  model_.decode(rows, logits);
  model_.greedy_tokens(next);
  const double share = 1.0 / static_cast<double>(active_.size());
  for (std::size_t i = 0; i < active_.size(); ++i) {
    Active& active = *active_[i];
    active.times.add_scaled(model_.times(), share);
    active.completion.decode_positions.push_back(active.position);
    active.completion.weight_passes += share;
    ++active.position;
    accept_token(active, next[i]);
  }
  complete_finished(source);
}

void Engine::accept_token(Active& active, std::int32_t token) {
  Completion& completion = active.completion;
  active.next_token = token;
  if (std::find(options_.stop_ids.begin(), options_.stop_ids.end(), token) != options_.stop_ids.end()) {
    completion.finish_reason = "stop";
    return;
  }
  completion.output.push_back(token);
  if (static_cast<std::int64_t>(completion.output.size()) == active.max_output)
    completion.finish_reason = "length";
}

void Engine::complete_finished(RequestSource* source) {
  for (std::size_t i = 0; i < active_.size();) {
    Active& active = *active_[i];
    if (active.completion.finish_reason.empty()) {
      ++i;
      continue;
    }
    const std::size_t steps = active.completion.decode_positions.size();
    active.completion.per_token_s =
        steps > 0 ? seconds_since(active.first_token_at) / static_cast<double>(steps) : NAN;
    ByteWriter writer;
    pack_report(writer, report(active));
    const auto reports = grid_.group->gather(writer.take(), 0);
    model_.remove_sequence(active.sequence);
    if (grid_.is_group_leader()) {
      for (const auto& bytes : reports) {
        ByteReader reader(bytes);
        active.completion.ranks.push_back(unpack_report(reader));
      }
      source->finished(std::move(active.completion));
    }
    active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

RankReport Engine::report(const Active& active) const {
  RankReport r;
  r.world_rank = grid_.world->rank();
  r.op_s = active.times.values();
  r.exchange = active.exchange;
  r.attention = active.attention;
  r.diagnosis = active.diagnosis;
  r.tp = grid_.place.tp;
  r.sp = grid_.place.sp;
  r.peak_total = meter_.peak_total();
  r.peak_weights = meter_.peak(MemoryKind::kWeights);
  r.peak_kv = model_.peak_kv_bytes();
  r.peak_workspace = meter_.peak(MemoryKind::kWorkspace);
  r.peak_resident = peak_resident_bytes();
  return r;
}

}  // namespace tessera
