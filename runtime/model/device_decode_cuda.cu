// One token of each of several sequences: decoding. All kernels of a step read tokens, positions, tables and
// row counts on the device, so that one captured graph serves every step of as many sequences.
#include <algorithm>

#include "runtime/core/error.hpp"
#include "runtime/core/tensor.hpp"
#include "runtime/model/device_model.hpp"

namespace tessera::cuda {

void DeviceModel::decode(std::span<const DecodeRow> rows, std::vector<float>& logits) {
  const auto count = static_cast<int>(rows.size());
  TESSERA_CHECK(count >= 1 && count <= shape_.batch);
  const DeviceScope scope(shape_.device);
  if (listener_) listener_(Phase::kDecode, -1, Operation::kEmbed);
  hold_rows(rows);
  inputs_copied_.synchronize();  // the last step's have left the pinned array
  auto* inputs = host_inputs_.as<std::int32_t>();
  for (int i = 0; i < count; ++i) {
    const DecodeRow& row = rows[static_cast<std::size_t>(i)];
    inputs[i] = row.token;
    inputs[shape_.batch + i] = row.position;
    inputs[2 * shape_.batch + i] = row.sequence;
  }
  copy_to_device(inputs_.data(), inputs, inputs_.bytes(), stream_);
  inputs_copied_.record(stream_);
  const bool is_looked_into =
      listens_to_decode() ||
      std::any_of(rows.begin(), rows.end(), [](const DecodeRow& row) { return row.diagnosis != nullptr; });
  if (is_looked_into && plan_.decode.method().unit == SelectUnit::kPages) inspected_ = rows;
  run_step(count);
  inspected_ = {};
  count_step(rows);
  fetch_results(count, logits_.as<const float>(), logits);
}

// Slots for the new rows, and none for what has left a window.
void DeviceModel::hold_rows(std::span<const DecodeRow> rows) {
  BlockTables& tables = cache_->tables();
  for (const DecodeRow& row : rows) {
    TESSERA_CHECK(row.position >= 0 && row.position < shape_.max_tokens);
    for (int layer = 0; layer < config_.layers; ++layer) {
      const PlanGroup& group = group_of(layer);
      if (group.window > 0) {
        tables.release_between(row.sequence, layer, group.sinks, row.position - group.window + 1);
      }
      tables.extend(row.sequence, layer, {&row.position, 1});
    }
    cache_->mirror(row.sequence);
  }
}

// The first step of a batch size is launched kernel by kernel: what libraries set up when they are first
// asked cannot be captured. So is one that somebody looks into.
void DeviceModel::run_step(int count) {
  Step& step = steps_[count];
  if (step.steps == 0) step.shares = OpTimes(static_cast<int>(config_.layers));
  const std::int64_t turn = step.steps++;
  pending_count_ = count;
  if (turn == 0 || !shape_.graphs || !inspected_.empty()) {
    clock_.clear();
    enqueue_step(count, &clock_);
    clock_.stop();
    pending_ = Pending::kDirectStep;
    return;
  }
  if (turn % kStepsBetweenClocks == 0) {
    if (!step.timed) {
      step.clock = std::make_unique<DeviceClock>(stream_, DeviceClock::Use::kInGraph);
      step.clock->reserve(clock_marks_of_step());
      step.timed = CudaGraph(stream_, [&] {
        enqueue_step(count, step.clock.get());
        step.clock->stop();
      });
    }
    step.timed.launch(stream_);
    pending_ = Pending::kTimedStep;
    return;
  }
  if (!step.plain) step.plain = CudaGraph(stream_, [&] { enqueue_step(count, nullptr); });
  step_began_.record(stream_);
  step.plain.launch(stream_);
  step_ended_.record(stream_);
  pending_ = Pending::kPlainStep;
}

// Embedding and logits, and up to six operations a layer. Of several ranks, a collective after each of those
// two, and three in a layer, which what goes on follows.
std::size_t DeviceModel::clock_marks_of_step() const {
  const std::size_t marks = static_cast<std::size_t>(config_.layers) * 6 + 2;
  return is_shared() ? 2 * marks : marks;
}

void DeviceModel::enqueue_step(int count, DeviceClock* clock) {
  const auto* tokens = inputs_.as<const std::int32_t>();
  const std::int32_t* positions = tokens + shape_.batch;
  const std::int32_t* handles = positions + shape_.batch;
  embed({Phase::kDecode, -1, clock}, count, tokens, step_.hidden);
  cache_->begin_step(handles, count);
  for (PlanGroup& group : plan_groups_) plan_group(group, count);
  mark(clock, Phase::kDecode, 0, Operation::kQkv);
  norm(count, step_.hidden, weights_.layers.front().input_norm, step_.normed);
  for (int layer = 0; layer < config_.layers; ++layer) {
    mark(clock, Phase::kDecode, layer, Operation::kQkv);
    Target target;
    target.positions = positions;
    target.table = cache_->table(0, layer);
    target.sequences = handles;
    if (group_of(layer).kind == PlanGroup::Kind::kPacked) target.rows_of_head = cache_->rows(layer);
    project(layer, count, step_, target);
    if (group_of(layer).kind == PlanGroup::Kind::kPages) select_pages(layer, count, clock);
    mark(clock, Phase::kDecode, layer, Operation::kAttend);
    attend_step(layer, count);
    if (!inspected_.empty() && group_of(layer).kind == PlanGroup::Kind::kPages) inspect_step(layer);
    const bool is_last = layer + 1 == config_.layers;
    finish_layer(
        {Phase::kDecode, layer, clock}, count, step_,
        is_last ? weights_.final_norm : weights_.layers[static_cast<std::size_t>(layer) + 1].input_norm);
  }
  mark(clock, Phase::kDecode, -1, Operation::kLogits);
  cache_->end_step(handles, count);
  compute_logits({Phase::kDecode, -1, clock}, count, step_.normed, logits_.as<float>());
}

// ---- attention --------------------------------------------------------------------------------------------

DecodeProblem DeviceModel::problem_of(int count, int lists) const {
  DecodeProblem problem;
  problem.sequences = count;
  problem.heads = static_cast<int>(config_.heads);
  problem.kv_heads = static_cast<int>(config_.kv_heads);
  problem.head_dim = static_cast<int>(config_.head_dim);
  problem.lists = lists;
  return problem;
}

DecodeReach DeviceModel::reach_of(const PlanGroup& group, int layer) const {
  DecodeReach reach;
  reach.positions = inputs_.as<const std::int32_t>() + shape_.batch;
  switch (group.kind) {
    case PlanGroup::Kind::kWindow:
      reach.window = group.window;
      reach.sinks = group.sinks;
      break;
    case PlanGroup::Kind::kPacked:
      reach.rows_of_head = cache_->step_rows(layer);
      break;
    case PlanGroup::Kind::kPages:
      reach.pages = pages_.as<const std::int32_t>();
      reach.page_stride = page_stride_;
      reach.page_count = page_count_.as<const std::int32_t>();
      reach.budget_pages = static_cast<std::int32_t>(budget_pages());
      break;
  }
  return reach;
}

// Before the lists of pages are there: their lengths are known from the positions.
void DeviceModel::plan_group(PlanGroup& group, int count) {
  DecodePlanParams p;
  p.problem = problem_of(count, group.lists);
  p.config = choose_decode_config(p.problem, multiprocessors_);
  p.reach = reach_of(group, group.layer);
  p.plan = group.plan.data();
  p.overlaps_previous = true;
  p.stream = stream_;
  plan_decode(p);
}

// What the kernels of a layer read early (plan, tables, positions, finished pages) is older than the
// attention of the first layer, behind which nothing starts before all ahead of it has ended.
bool DeviceModel::is_settled(int layer) {
  return layer > 0;
}

void DeviceModel::select_pages(int layer, int count, DeviceClock* clock) {
  PageSelectProblem problem;
  problem.sequences = count;
  problem.heads = static_cast<int>(config_.heads);
  problem.kv_heads = static_cast<int>(config_.kv_heads);
  problem.head_dim = static_cast<int>(config_.head_dim);
  problem.per_query_head = plan_.decode.whole("per_query_head") != 0;
  const std::byte* queries = step_.queries;
  if (kv_replicas_ > 1 && !problem.per_query_head) {  // all heads of the group decide together
    queries = queries_of_groups({Phase::kDecode, layer, clock}, count);
    problem.heads *= kv_replicas_;
  }
  const std::int32_t* positions = inputs_.as<const std::int32_t>() + shape_.batch;
  mark(clock, Phase::kDecode, layer, Operation::kEstimate);
  DevicePageScoreParams score;
  score.problem = problem;
  score.multiprocessors = multiprocessors_;
  score.q_dtype = dtype_;
  score.q = queries;
  score.positions = positions;
  score.tables = cache_->step_tables(layer);
  score.table_stride = cache_->stride();
  score.bounds_dtype = dtype_;
  score.bounds = cache_->bounds();
  score.scores = page_scores_.as<float>();
  score.score_stride = score_stride_;
  score.overlaps_previous = true;
  score.settled = is_settled(layer);
  score.stream = stream_;
  score_pages_on_device(score);
  mark(clock, Phase::kDecode, layer, Operation::kSelect);
  DevicePageSelectParams select;
  select.problem = problem;
  select.budget_pages = static_cast<int>(budget_pages());
  select.positions = positions;
  select.scores = page_scores_.as<const float>();
  select.score_stride = score_stride_;
  select.pages = pages_.as<std::int32_t>();
  select.page_stride = page_stride_;
  select.page_begin = page_begin_.as<std::int32_t>();
  select.page_count = page_count_.as<std::int32_t>();
  select.overlaps_previous = true;
  select.settled = is_settled(layer);
  select.stream = stream_;
  select_pages_on_device(select);
}

void DeviceModel::attend_step(int layer, int count) {
  const PlanGroup& group = group_of(layer);
  DecodeAttendParams p;
  p.problem = problem_of(count, group.lists);
  p.config = choose_decode_config(p.problem, multiprocessors_);
  p.reach = reach_of(group, layer);
  p.plan = group.plan.data();
  p.workspace = attend_space_.data();
  p.dtype = dtype_;
  p.q = step_.queries;
  p.slots = cache_->slots();
  p.slot_bytes = cache_->tables().shape().slot_bytes();
  p.tables = cache_->step_tables(layer);
  p.table_stride = cache_->stride();
  p.scale = config_.attention_scale;
  p.out = step_.attended;
  p.out_dtype = dtype_;
  p.overlaps_previous = true;
  p.settled = is_settled(layer);
  p.stream = stream_;
  attend_decode(p);
}

// ---- accounting -------------------------------------------------------------------------------------------

// Cache rows that each row read, known from positions and row counts alone.
void DeviceModel::count_step(std::span<const DecodeRow> rows) {
  const auto heads = static_cast<std::size_t>(config_.heads);
  const std::size_t group_size = heads / static_cast<std::size_t>(config_.kv_heads);
  for (const DecodeRow& row : rows) {
    if (row.counts == nullptr) continue;
    AttentionCounts& counts = *row.counts;
    const bool is_first = counts.steps == 0;
    counts.kv_read.resize(static_cast<std::size_t>(config_.layers) * heads);
    counts.kv_read_first.resize(counts.kv_read.size());
    const std::int64_t dense = std::int64_t{row.position} + 1;
    for (int layer = 0; layer < config_.layers; ++layer) {
      const PlanGroup& group = group_of(layer);
      const std::span<const std::int64_t> packed = cache_->tables().rows(row.sequence, layer);
      for (std::size_t head = 0; head < heads; ++head) {
        std::int64_t read = 0;
        switch (group.kind) {
          case PlanGroup::Kind::kPacked:
            read = packed[head / group_size];
            break;
          case PlanGroup::Kind::kPages: {
            const std::int64_t finished = row.position / kPageTokens;
            read = std::min(budget_pages(), finished) * kPageTokens + dense - finished * kPageTokens;
            break;
          }
          case PlanGroup::Kind::kWindow: {
            const std::int64_t recent =
                group.window > 0 ? std::min<std::int64_t>(dense, group.window) : dense;
            read = recent + std::min<std::int64_t>(group.sinks, dense - recent);
            break;
          }
        }
        const std::size_t at = static_cast<std::size_t>(layer) * heads + head;
        counts.kv_read[at] += static_cast<std::uint64_t>(read);
        if (is_first) counts.kv_read_first[at] = static_cast<std::uint64_t>(read);
      }
    }
    ++counts.steps;
  }
}

}  // namespace tessera::cuda
