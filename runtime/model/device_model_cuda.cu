#include "runtime/model/device_model.hpp"

#include <algorithm>
#include <cmath>
#include <exception>
#include <utility>

#include "runtime/core/cuda_check.hpp"
#include "runtime/core/device_ops.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/tensor.hpp"
#include "runtime/model/rope_table.hpp"
#include "runtime/model/tensor_plan.hpp"

namespace tessera::cuda {
namespace {

constexpr std::size_t kAlignment = 256;

std::size_t aligned(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

int count_multiprocessors(Device device) {
  int count = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device.ordinal));
  return count;
}

DeviceBuffer upload_positions(std::int64_t count, std::int64_t step, StreamView stream, MemoryMeter& meter) {
  std::vector<std::int32_t> positions(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < positions.size(); ++i) {
    positions[i] = static_cast<std::int32_t>(static_cast<std::int64_t>(i) * step);
  }
  const std::size_t bytes = positions.size() * sizeof(std::int32_t);
  DeviceBuffer buffer(bytes, stream.device, MemoryKind::kWorkspace, meter);
  copy_to_device(buffer.data(), positions.data(), bytes, stream);
  synchronize(stream);
  return buffer;
}

void check_block_sparse(const ModelConfig& config, const AttentionPlan& plan) {
  const std::int64_t edge = plan.prefill.whole("edge");
  if (edge < kBlockTokens && config.head_dim > 128) {
    throw UsageError(
        "--set block_sparse.edge={}: with heads of {} channels the CUDA backend chooses blocks of 64 or 128 "
        "tokens; use one of those or --device cpu",
        edge, config.head_dim);
  }
  if (plan.share_group) {
    throw UsageError(
        "--share-group --prefill block_sparse: on the CUDA backend every query head chooses for itself; "
        "leave "
        "it out or use --device cpu");
  }
}

}  // namespace

void check_device_model(const ModelConfig& config, const AttentionPlan& plan, const DeviceModelShape& shape) {
  const Method& prefill = plan.prefill.method();
  const Method& decode = plan.decode.method();
  if (config.head_dim != 64 && config.head_dim != 128 && config.head_dim != 256) {
    throw UsageError(
        "--device cuda: the model's heads have {} channels, and its kernels take 64, 128 or 256; "
        "use --device cpu",
        config.head_dim);
  }
  constexpr std::int64_t kMostGroup = 16;
  if (config.heads / config.kv_heads > kMostGroup) {
    throw UsageError(
        "--device cuda: {} query heads share a KV head, and its kernels take at most {}; use "
        "--device cpu",
        config.heads / config.kv_heads, kMostGroup);
  }
  if (prefill.importance == Importance::kAntidiagonals) {
    throw UsageError(
        "--device cuda --prefill {}: prompts run dense, streaming, vertical_slash, flexprefill or "
        "block_sparse on the CUDA backend so far; use one of those or --device cpu",
        prefill.name);
  }
  if (prefill.importance == Importance::kPooledBlocks) check_block_sparse(config, plan);
  if (decode.unit == SelectUnit::kPages && decode.budget != BudgetRule::kUniform) {
    throw UsageError(
        "--device cuda --decode {}: of the methods that read pages the CUDA backend has quest so "
        "far; use that one or --device cpu",
        decode.name);
  }
  if (shape.batch < 1 || shape.batch > kMostDecodeRows) {
    throw UsageError("--batch {}: the CUDA backend decodes 1 to {} sequences together", shape.batch,
                     kMostDecodeRows);
  }
}

DeviceModel::DeviceModel(const ModelConfig& config, const RopeConfig& rope, const DeviceWeights& weights,
                         const DeviceModelShape& shape, MemoryMeter& meter, const AttentionPlan& plan)
    : config_(config_of_rank(config, shape.tp.rank, shape.tp.size)),
      weights_(weights),
      shape_(shape),
      kv_replicas_(static_cast<int>(shape.tp.size * config_.kv_heads / config.kv_heads)),
      exceptions_at_start_(std::uncaught_exceptions()),
      plan_(plan),
      layers_(plan, config),
      meter_(meter),
      dtype_(weights.dtype),
      multiprocessors_(count_multiprocessors(shape.device)),
      stream_(shape.device),
      pool_(stream_, meter),
      gemm_(pool_),
      inputs_copied_(shape.device),
      step_began_(shape.device, EventUse::kTiming),
      step_ended_(shape.device, EventUse::kTiming),
      clock_(stream_),
      times_(static_cast<int>(config.layers)) {
  check_device_model(config, plan, shape);
  check_ranks();
  const DeviceScope scope(shape.device);
  const KvShape kv{static_cast<int>(config_.layers), static_cast<int>(config_.kv_heads),
                   static_cast<int>(config_.head_dim), dtype_, layers_.needs_page_bounds()};
  cache_ = std::make_unique<DeviceKvCache>(
      kv, DeviceKvCache::Room{shape.kv_slots, shape.max_tokens, shape.batch}, pool_, meter);
  rope_ = upload_rope(rope);
  const bool windowed = std::any_of(config.layer_window.begin(), config.layer_window.end(),
                                    [](std::int32_t window) { return window > 0; });
  if (windowed && config.family == ModelFamily::kGemma3) local_rope_ = upload_rope(config.local_rope);
  all_positions_ = upload_positions(shape.max_tokens, 1, stream_, meter);
  block_positions_ =
      upload_positions(ceil_div(shape.max_tokens, kQueryBlockRows), kQueryBlockRows, stream_, meter);
  prefill_counters_ = DeviceBuffer(2 * sizeof(std::uint32_t), shape.device, MemoryKind::kWorkspace, meter);
  fill_bytes(prefill_counters_.data(), 0, prefill_counters_.bytes(), stream_);
  make_pair_sums();
  make_plans();
  make_step_buffers();
  stream_.synchronize();
  // An abort waits until no graph holds a call of the communicator.
  if (is_shared()) shape_.tp.device->set_before_abort([this] { steps_.clear(); });
}

DeviceModel::~DeviceModel() {
  if (is_shared()) {
    // A rank that fails: the others will not come to what is enqueued here.
    if (std::uncaught_exceptions() > exceptions_at_start_) shape_.tp.device->abort();
    shape_.tp.device->set_before_abort({});
  }
  cudaStreamSynchronize(native(stream_));  // before what its kernels use is given back
}

int DeviceModel::add_sequence(std::int64_t max_tokens) {
  return cache_->add_sequence(max_tokens);
}

void DeviceModel::remove_sequence(int sequence) {
  cache_->remove_sequence(sequence);
}

std::int64_t DeviceModel::peak_kv_bytes() const {
  const BlockTables& tables = cache_->tables();
  return tables.peak_used_slots() *
         static_cast<std::int64_t>(tables.shape().slot_bytes() + tables.shape().bounds_bytes());
}

std::size_t DeviceModel::bytes_of(std::int64_t elements) const {
  return static_cast<std::size_t>(elements) * size_of(dtype_);
}

DeviceModel::Ropes DeviceModel::upload_rope(const RopeConfig& rope) {
  MemoryMeter host;  // the table is gone once it is on the device
  const RopeTable table = make_rope_table(rope, config_.head_dim, shape_.max_tokens, host);
  Ropes ropes;
  ropes.values = DeviceBuffer(table.values.bytes(), shape_.device, MemoryKind::kWorkspace, meter_);
  copy_to_device(ropes.values.data(), table.values.data(), table.values.bytes(), stream_);
  stream_.synchronize();
  ropes.cosines = ropes.values.as<float>();
  ropes.sines = ropes.cosines + table.positions * table.half;
  return ropes;
}

const DeviceModel::Ropes& DeviceModel::rope_of(int layer) const {
  const bool windowed = config_.layer_window[static_cast<std::size_t>(layer)] > 0;
  return windowed && local_rope_.cosines != nullptr ? local_rope_ : rope_;
}

// ---- what decoding works in -------------------------------------------------------------------------------

void DeviceModel::make_plans() {
  const Method& decode = plan_.decode.method();
  for (int layer = 0; layer < config_.layers; ++layer) {
    PlanGroup group;
    group.lists = static_cast<int>(config_.kv_heads);
    group.window = config_.layer_window[static_cast<std::size_t>(layer)];
    if (layers_.slides(layer)) {
      group.window = static_cast<std::int32_t>(plan_.decode.whole("window"));
      group.sinks = static_cast<std::int32_t>(plan_.decode.whole("sinks"));
    } else if (layers_.reads_pages(layer)) {
      group.kind = PlanGroup::Kind::kPages;
      if (plan_.decode.whole("per_query_head") != 0) group.lists = static_cast<int>(config_.heads);
    } else if (layers_.evicts(layer)) {
      group.kind = PlanGroup::Kind::kPacked;
      group.layer = layer;
    }
    const auto same = [&](const PlanGroup& other) {
      if (other.kind != group.kind) return false;
      // Heads that each keep the same number of tokens do so in every layer.
      if (group.kind == PlanGroup::Kind::kPacked) return decode.budget == BudgetRule::kUniform;
      return other.window == group.window && other.sinks == group.sinks;
    };
    const auto found = std::find_if(plan_groups_.begin(), plan_groups_.end(), same);
    group_of_layer_.push_back(static_cast<int>(found - plan_groups_.begin()));
    if (found == plan_groups_.end()) plan_groups_.push_back(std::move(group));
  }
  std::size_t space = 0;
  for (PlanGroup& group : plan_groups_) {
    const DecodeProblem problem = problem_of(shape_.batch, group.lists);
    const DecodeConfig config = choose_decode_config(problem, multiprocessors_);
    group.plan =
        DeviceBuffer(decode_plan_bytes(problem, config), shape_.device, MemoryKind::kWorkspace, meter_);
    space = std::max(space, decode_workspace_bytes(problem, config));
    if (group.kind != PlanGroup::Kind::kPages) continue;
    const auto rows = static_cast<std::size_t>(problem.all_lists());
    const std::int64_t budget = plan_.decode.whole("tokens") / kPageTokens;
    score_stride_ = ceil_div(ceil_div(shape_.max_tokens, kPageTokens), 32) * 32;
    page_stride_ = std::min(budget, score_stride_) + 1;
    const auto workspace = [&](std::size_t bytes) {
      return DeviceBuffer(bytes, shape_.device, MemoryKind::kWorkspace, meter_);
    };
    page_scores_ = workspace(rows * static_cast<std::size_t>(score_stride_) * sizeof(float));
    pages_ = workspace(rows * static_cast<std::size_t>(page_stride_) * sizeof(std::int32_t));
    page_begin_ = workspace(rows * sizeof(std::int32_t));
    page_count_ = workspace(rows * sizeof(std::int32_t));
  }
  attend_space_ = DeviceBuffer(space, shape_.device, MemoryKind::kWorkspace, meter_);
}

void DeviceModel::make_step_buffers() {
  const std::int64_t batch = shape_.batch;
  const std::pair<std::byte**, std::int64_t> parts[] = {
      {&step_.hidden, config_.hidden},
      {&step_.normed, config_.hidden},
      {&step_.qkv, qkv_width()},
      {&step_.queries, q_width()},
      {&step_.attended, q_width()},
      {&step_.projected, config_.hidden},
      {&step_.gate_up, 2 * config_.mlp},
      {&step_.activated, config_.mlp},
      {&step_.partial, sums_apart() ? 2 * config_.hidden : 0},  // twice as wide
  };
  std::size_t bytes = 0;
  for (const auto& [place, width] : parts) bytes += aligned(bytes_of(batch * width));
  step_storage_ = DeviceBuffer(bytes, shape_.device, MemoryKind::kWorkspace, meter_);
  std::byte* next = step_storage_.data();
  for (const auto& [place, width] : parts) {
    *place = next;
    next += aligned(bytes_of(batch * width));
  }
  const std::size_t input_bytes = 3 * static_cast<std::size_t>(batch) * sizeof(std::int32_t);
  inputs_ = DeviceBuffer(input_bytes, shape_.device, MemoryKind::kWorkspace, meter_);
  host_inputs_ = PinnedBuffer(input_bytes);
  logits_ = DeviceBuffer(static_cast<std::size_t>(batch * weights_.vocab_rows) * sizeof(float), shape_.device,
                         MemoryKind::kWorkspace, meter_);
  if (kv_replicas_ > 1 && layers_.needs_page_bounds()) {
    all_queries_ = DeviceBuffer(bytes_of(shape_.tp.size * batch * q_width()), shape_.device,
                                MemoryKind::kWorkspace, meter_);
    group_queries_ = DeviceBuffer(bytes_of(kv_replicas_ * batch * q_width()), shape_.device,
                                  MemoryKind::kWorkspace, meter_);
  }
  reserve_results(batch);
}

// Grows between calls only: graphs keep the addresses of those that a step needs.
void DeviceModel::reserve_results(std::int64_t rows) {
  const auto count = static_cast<std::size_t>(rows);
  if (results_.bytes() >= count * kResultBytes) return;
  wait_for_stream("larger results");
  steps_.clear();
  const auto workspace = [&](std::size_t bytes) {
    return DeviceBuffer(bytes, shape_.device, MemoryKind::kWorkspace, meter_);
  };
  argmax_keys_ = workspace(count * sizeof(std::uint64_t));
  argmax_indices_ = workspace(count * sizeof(std::int32_t));
  argmax_values_ = workspace(count * sizeof(float));
  results_ = PinnedBuffer(count * kResultBytes);
}

// ---- the parts of a layer ---------------------------------------------------------------------------------

void DeviceModel::mark(DeviceClock* clock, Phase phase, int layer, Operation operation) {
  if (listener_) listener_(phase, layer, operation);
  if (clock != nullptr) clock->mark(phase, layer, operation);
}

void DeviceModel::embed(const LayerCall& call, std::int64_t count, const std::int32_t* tokens,
                        std::byte* hidden) {
  mark(call.clock, call.phase, -1, Operation::kEmbed);
  EmbedParams p;
  p.tokens_count = count;
  p.tokens = tokens;
  p.table = weights_.embedding;
  p.rows = weights_.vocab_rows;
  p.columns = config_.hidden;
  p.dtype = dtype_;
  p.first_row = weights_.first_vocab_row;
  p.scale = config_.embedding_scale;
  p.out = hidden;
  p.stream = stream_;
  embed_rows(p);
  sum_over_ranks(call, hidden, count * config_.hidden, dtype_);  // of zeros and one row: exact
}

void DeviceModel::linear(const LinearShape& shape, const std::byte* x, const std::byte* weight, void* y,
                         DType y_dtype) {
  LinearParams p;
  p.rows = shape.rows;
  p.inner = shape.inner;
  p.columns = shape.columns;
  p.dtype = dtype_;
  p.x = x;
  p.weight = weight;
  p.y = y;
  p.y_dtype = y_dtype;
  p.settled_weight = true;
  gemm_.linear(p);
}

void DeviceModel::norm(std::int64_t count, const std::byte* x, const std::byte* weight, std::byte* y) {
  RmsNormParams p;
  p.rows = count;
  p.columns = config_.hidden;
  p.dtype = dtype_;
  p.x = x;
  p.weight = weight;
  p.weight_offset = config_.norm_weight_offset;
  p.eps = static_cast<float>(config_.norm_eps);
  p.y = y;
  p.stream = stream_;
  rms_norm(p);
}

void DeviceModel::add_norm(std::int64_t count, const Rows& rows, const std::byte* post_weight,
                           const std::byte* weight) {
  AddNormParams p;
  p.rows = count;
  p.columns = config_.hidden;
  p.dtype = dtype_;
  p.x = rows.projected;
  p.post_weight = post_weight;
  p.residual = rows.hidden;
  p.weight = weight;
  p.weight_offset = config_.norm_weight_offset;
  p.eps = static_cast<float>(config_.norm_eps);
  p.y = weight == nullptr ? nullptr : rows.normed;
  p.stream = stream_;
  cuda::add_norm(p);
}

// Projections of normed rows; bias, head norms and rope; keys and values into the cache.
void DeviceModel::project(int layer, std::int64_t count, const Rows& rows, const Target& target) {
  const DeviceLayerWeights& w = weights_.layers[static_cast<std::size_t>(layer)];
  linear({count, config_.hidden, qkv_width()}, rows.normed, w.qkv, rows.qkv, dtype_);
  const Ropes& rope = rope_of(layer);
  QkvParams p;
  p.tokens = count;
  p.heads = static_cast<int>(config_.heads);
  p.kv_heads = static_cast<int>(config_.kv_heads);
  p.head_dim = static_cast<int>(config_.head_dim);
  p.dtype = dtype_;
  p.q = rows.qkv;
  p.q_stride = qkv_width();
  p.k = rows.qkv + bytes_of(q_width());
  p.v = rows.qkv + bytes_of(q_width() + kv_width());
  p.kv_stride = qkv_width();
  p.q_bias = w.q_bias;
  p.k_bias = w.k_bias;
  p.v_bias = w.v_bias;
  p.q_norm = w.q_norm;
  p.k_norm = w.k_norm;
  p.norm_offset = config_.norm_weight_offset;
  p.norm_eps = static_cast<float>(config_.norm_eps);
  p.positions = target.positions;
  p.cosines = rope.cosines;
  p.sines = rope.sines;
  p.q_out = rows.queries;
  p.slots = cache_->slots();
  p.slot_bytes = cache_->tables().shape().slot_bytes();
  p.table = target.table;
  p.table_stride = cache_->stride();
  p.sequences = target.sequences;
  p.table_sequence_stride = cache_->sequence_stride();
  p.rows_of_head = target.rows_of_head;
  p.bounds = target.rows_of_head == nullptr ? cache_->bounds() : nullptr;
  p.stream = stream_;
  qkv_to_cache(p);
}

// Output projection, MLP and their residuals. next_norm: of what reads the residual stream next, into
// rows.normed; null: nothing does.
void DeviceModel::finish_layer(const LayerCall& call, std::int64_t count, const Rows& rows,
                               const std::byte* next_norm) {
  const DeviceLayerWeights& w = weights_.layers[static_cast<std::size_t>(call.layer)];
  mark(call.clock, call.phase, call.layer, Operation::kOut);
  linear_over_ranks(call, {count, q_width(), config_.hidden}, rows.attended, w.o, rows);
  mark(call.clock, call.phase, call.layer, Operation::kMlp);
  add_norm(count, rows, w.post_attention_norm, w.pre_mlp_norm);
  linear({count, config_.hidden, 2 * config_.mlp}, rows.normed, w.gate_up, rows.gate_up, dtype_);
  GatedActivationParams p;
  p.rows = count;
  p.columns = config_.mlp;
  p.dtype = dtype_;
  p.gate = rows.gate_up;
  p.up = rows.gate_up + bytes_of(config_.mlp);
  p.in_stride = 2 * config_.mlp;
  p.y = rows.activated;
  p.activation = config_.activation;
  p.stream = stream_;
  gated_activation(p);
  linear_over_ranks(call, {count, config_.mlp, config_.hidden}, rows.activated, w.down, rows);
  mark(call.clock, call.phase, call.layer, Operation::kMlp);
  add_norm(count, rows, w.post_mlp_norm, next_norm);
}

// Logits of rows that the final norm has passed, those of this rank's part of the vocabulary, and the best of
// each row over all parts.
void DeviceModel::compute_logits(const LayerCall& call, std::int64_t count, const std::byte* normed,
                                 float* logits) {
  mark(call.clock, call.phase, -1, Operation::kLogits);
  linear({count, config_.hidden, weights_.vocab_rows}, normed, weights_.lm_head, logits, DType::kF32);
  ArgmaxParams p;
  p.rows = count;
  p.columns = weights_.vocab_rows;
  p.dtype = DType::kF32;
  p.logits = logits;
  p.first_column = weights_.first_vocab_row;
  p.keys = argmax_keys_.as<std::uint64_t>();
  p.indices = argmax_indices_.as<std::int32_t>();
  p.values = argmax_values_.as<float>();
  p.stream = stream_;
  argmax_keys(p);
  best_over_ranks(call, count);
  argmax_of_keys(p);
}

// ---- results ----------------------------------------------------------------------------------------------

void DeviceModel::fetch_results(std::int64_t count, const float* logits, std::vector<float>& into) {
  const auto rows = static_cast<std::size_t>(count);
  result_rows_ = count;
  std::byte* values = results_.data() + rows * sizeof(std::int32_t);
  copy_to_host(results_.data(), argmax_indices_.data(), rows * sizeof(std::int32_t), stream_);
  copy_to_host(values, argmax_values_.data(), rows * sizeof(float), stream_);
  into.clear();
  if (!want_logits_ || count == 0) return;
  into.resize(rows * static_cast<std::size_t>(weights_.vocab_rows));
  wait_for_stream("logits");  // a copy to memory that is not pinned waits by itself, without a deadline
  copy_to_host(into.data(), logits, into.size() * sizeof(float), stream_);
  stream_.synchronize();
  gather_vocabulary(count, into);
}

void DeviceModel::greedy_tokens(std::vector<std::int32_t>& tokens) {
  const DeviceScope scope(shape_.device);
  wait_for_stream("the next token");
  if (pending_ == Pending::kPrefill) read_pairs();
  collect_times();
  const auto* indices = results_.as<const std::int32_t>();
  const auto* values = reinterpret_cast<const float*>(indices + result_rows_);
  for (std::int64_t row = 0; row < result_rows_; ++row) {
    if (indices[row] < 0 || !std::isfinite(values[row])) {
      throw NumericalError(
          "logits hold NaN or Inf (row {} of {}); the weights, the dtype or the rope are wrong for "
          "this prompt",
          row, result_rows_);
    }
  }
  tokens.assign(indices, indices + result_rows_);
}

void DeviceModel::collect_times() {
  switch (std::exchange(pending_, Pending::kNothing)) {
    case Pending::kNothing:
      return;
    case Pending::kPrefill:
      return clock_.add_to(times_);
    case Pending::kDirectStep:
      return adopt_step_times(clock_);
    case Pending::kTimedStep:
      return adopt_step_times(*steps_.at(pending_count_).clock);
    case Pending::kPlainStep:
      times_.add_scaled(steps_.at(pending_count_).shares,
                        milliseconds_between(step_began_, step_ended_) * 1e-3);
      return;
  }
}

// Adds them, and keeps their proportions for steps that are timed as a whole.
void DeviceModel::adopt_step_times(const DeviceClock& clock) {
  const int layers = static_cast<int>(config_.layers);
  OpTimes step(layers);
  clock.add_to(step);
  times_.add_scaled(step, 1.0);
  double whole = 0;
  for (const double seconds : step.values()) whole += seconds;
  OpTimes shares(layers);
  if (whole > 0) shares.add_scaled(step, 1.0 / whole);
  steps_.at(pending_count_).shares = std::move(shares);
}

}  // namespace tessera::cuda
