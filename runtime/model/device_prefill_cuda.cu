// Prompts: a layer at a time over all tokens, projections and MLP by chunks, so that their workspace does not
// grow with the prompt. A chunk that leaves a layer goes through the projections of the next at once.
#include <algorithm>
#include <memory>
#include <numeric>

#include "attention/prefill_cuda.hpp"
#include "attention/select.hpp"
#include "runtime/core/device_ops.hpp"
#include "runtime/core/error.hpp"
#include "runtime/model/accounting.hpp"
#include "runtime/model/device_prompt.hpp"

namespace tessera::cuda {
namespace {

// Of the last layer: where the query block of the first row whose logits are asked for begins.
std::int64_t first_row_needed(std::span<const std::int64_t> logit_positions, std::int64_t tokens) {
  if (logit_positions.empty()) return tokens;
  return logit_positions.front() / kQueryBlockRows * kQueryBlockRows;
}

// The first positions and the last: one list for all heads.
HeadLists ends_of(std::int64_t length, std::int64_t sinks, std::int64_t recent) {
  HeadLists lists;
  lists.heads = 1;
  for (std::int64_t i = 0; i < length; ++i) {
    if (i < sinks || i >= length - recent) lists.values.push_back(static_cast<std::int32_t>(i));
  }
  lists.begin = {0, static_cast<std::int64_t>(lists.values.size())};
  return lists;
}

}  // namespace

void DeviceModel::prefill(const PrefillRequest& request, std::vector<float>& logits) {
  const auto tokens = static_cast<std::int64_t>(request.tokens.size());
  TESSERA_CHECK(request.partition->ranks() == 1 && request.partition->length() == tokens && tokens > 0);
  TESSERA_CHECK(tokens <= shape_.max_tokens);
  const DeviceScope scope(shape_.device);
  Prompt prompt{request.sequence, *request.partition, std::vector<std::int32_t>(request.tokens.size()), {}};
  prompt.diagnosis = request.diagnosis;
  std::iota(prompt.positions.begin(), prompt.positions.end(), 0);
  exchange_ = {};
  attention_ = {};
  // What crosses ranks: one rank has nobody to ask.
  exchange_.bytes_selecting.assign(static_cast<std::size_t>(config_.layers), 0);

  const std::int64_t chunk = std::min(kDeviceChunkTokens, tokens);
  const auto take = [&](std::int64_t elements) { return pool_.take(bytes_of(elements)); };
  const StreamPool::Block hidden = take(tokens * config_.hidden), queries = take(tokens * q_width()),
                          attended = take(tokens * q_width()), normed = take(chunk * config_.hidden),
                          qkv = take(chunk * qkv_width()), projected = take(chunk * config_.hidden),
                          gate_up = take(2 * chunk * config_.mlp), activated = take(chunk * config_.mlp);
  const StreamPool::Block partial = take(sums_apart() ? 2 * chunk * config_.hidden : 0);
  prompt.rows = {hidden.data(),    normed.data(),  qkv.data(),       queries.data(), attended.data(),
                 projected.data(), gate_up.data(), activated.data(), partial.data()};

  clock_.clear();
  mark(&clock_, Phase::kPrefill, -1, Operation::kEmbed);
  prepare_selection(prompt);
  if (prompt.diagnosis != nullptr) prompt.lse = pool_.take_array<float>(tokens * config_.heads);
  {
    const StreamPool::Block ids = pool_.take_array<std::int32_t>(tokens);
    // From memory that is not pinned: copied before the call returns.
    copy_to_device(ids.data(), request.tokens.data(), request.tokens.size_bytes(), stream_);
    embed({Phase::kPrefill, -1, &clock_}, tokens, ids.as<const std::int32_t>(), prompt.rows.hidden);
  }
  extend_prompt(prompt, 0);
  for (std::int64_t first = 0; first < tokens; first += chunk) {
    const std::int64_t count = std::min(chunk, tokens - first);
    mark(&clock_, Phase::kPrefill, 0, Operation::kQkv);
    norm(count, prompt.rows.hidden + bytes_of(first * config_.hidden), weights_.layers.front().input_norm,
         prompt.rows.normed);
    project_chunk(prompt, 0, first, count);
  }
  for (int layer = 0; layer < config_.layers; ++layer) {
    const bool is_last = layer + 1 == config_.layers;
    const bool skips = is_last && prompt.diagnosis == nullptr;  // rows that no answer needs
    const std::int64_t begin = skips ? first_row_needed(request.logit_positions, tokens) : 0;
    attend_prompt(prompt, layer, begin);
    trim_cache(prompt, layer);
    if (!is_last) extend_prompt(prompt, layer + 1);
    for (std::int64_t first = begin; first < tokens; first += chunk) {
      const std::int64_t count = std::min(chunk, tokens - first);
      Rows rows = prompt.rows;
      rows.hidden += bytes_of(first * config_.hidden);
      rows.attended += bytes_of(first * q_width());
      const std::byte* next_norm =
          is_last ? nullptr : weights_.layers[static_cast<std::size_t>(layer) + 1].input_norm;
      finish_layer({Phase::kPrefill, layer, &clock_}, count, rows, next_norm);
      if (!is_last) project_chunk(prompt, layer + 1, first, count);
    }
  }
  fetch_pairs(prompt);
  compute_prompt_logits(prompt, request.logit_positions, logits);
}

void DeviceModel::compute_prompt_logits(const Prompt& prompt, std::span<const std::int64_t> wanted,
                                        std::vector<float>& logits) {
  const auto count = static_cast<std::int64_t>(wanted.size());
  mark(&clock_, Phase::kPrefill, -1, Operation::kLogits);
  reserve_results(count);
  const StreamPool::Block picked = pool_.take(bytes_of(count * config_.hidden));
  const StreamPool::Block values = pool_.take_array<float>(count * weights_.vocab_rows);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t position = wanted[static_cast<std::size_t>(i)];
    TESSERA_CHECK(position >= 0 && position < prompt.tokens());
    copy_on_device(picked.data() + bytes_of(i * config_.hidden),
                   prompt.rows.hidden + bytes_of(position * config_.hidden), bytes_of(config_.hidden),
                   stream_);
  }
  if (count > 0) {
    norm(count, picked.data(), weights_.final_norm, picked.data());
    compute_logits({Phase::kPrefill, -1, &clock_}, count, picked.data(), values.as<float>());
  }
  clock_.stop();
  pending_ = Pending::kPrefill;
  fetch_results(count, values.as<const float>(), logits);
}

// Slots for the whole prompt in one layer: earlier ones have let go of what decoding does not read.
void DeviceModel::extend_prompt(const Prompt& prompt, int layer) {
  cache_->tables().extend(prompt.sequence, layer, prompt.positions);
  cache_->mirror(prompt.sequence);
}

// Of rows that are normed for this layer already.
void DeviceModel::project_chunk(const Prompt& prompt, int layer, std::int64_t first, std::int64_t count) {
  mark(&clock_, Phase::kPrefill, layer, Operation::kQkv);
  Rows rows = prompt.rows;
  rows.queries += bytes_of(first * q_width());
  Target target;
  target.positions = all_positions_.as<const std::int32_t>() + first;
  target.table = cache_->table(prompt.sequence, layer);
  project(layer, count, rows, target);
}

// Rows from `first` on, which begins a query block.
void DeviceModel::attend_prompt(Prompt& prompt, int layer, std::int64_t first) {
  if (!layers_.sparse_prefill(layer)) {
    mark(&clock_, Phase::kPrefill, layer, Operation::kAttend);
    attend_densely(prompt, layer, first, prompt.rows.attended, nullptr);
    // Tile waste as that of the dense kernel on the CPU.
    const std::int64_t window = config_.layer_window[static_cast<std::size_t>(layer)];
    const DensePairs pairs = dense_pairs(prompt.partition, 0, window, first);
    return add_pairs(pairs.visible, pairs.executed);
  }
  switch (plan_.prefill.method().unit) {
    case SelectUnit::kBlocks:
      attend_chosen_blocks(prompt, layer, first);
      break;
    case SelectUnit::kLocalWindow:
      attend_window(prompt, layer, first);
      break;
    default:
      attend_chosen_lines(prompt, layer, first);
  }
  if (prompt.diagnosis != nullptr) diagnose_prompt(prompt, layer);
}

// The same for every head of the layer.
void DeviceModel::add_pairs(std::uint64_t visible, std::uint64_t executed) {
  const auto heads = static_cast<std::size_t>(config_.heads);
  attention_.pairs_visible.insert(attention_.pairs_visible.end(), heads, visible);
  attention_.pairs_executed.insert(attention_.pairs_executed.end(), heads, executed);
}

// Under the layer's own window. lse: (T, H), or null.
void DeviceModel::attend_densely(const Prompt& prompt, int layer, std::int64_t first, std::byte* out,
                                 float* lse) {
  PrefillParams p;
  p.tokens = prompt.tokens() - first;
  p.heads = static_cast<int>(config_.heads);
  p.q = prompt.rows.queries + bytes_of(first * q_width());
  p.q_row_stride = q_width();
  p.block_positions = block_positions_.as<const std::int32_t>() + first / kQueryBlockRows;
  p.kv = cache_->view(prompt.sequence, layer, prompt.tokens());
  p.pool_slots = cache_->capacity();
  p.scale = config_.attention_scale;
  p.window = config_.layer_window[static_cast<std::size_t>(layer)];
  p.out = out + bytes_of(first * q_width());
  p.lse = lse == nullptr ? nullptr : lse + first * config_.heads;
  p.counters = prefill_counters_.as<std::uint32_t>();
  p.stream = stream_;
  prefill_attention(p);
}

// Leaves in the cache what decoding reads: the method's choice, the window of a window layer, or everything.
void DeviceModel::trim_cache(Prompt& prompt, int layer) {
  const std::int64_t length = prompt.tokens();
  BlockTables& tables = cache_->tables();
  const auto kv_heads = static_cast<std::size_t>(config_.kv_heads);
  const auto count_kept = [&](std::int64_t sinks, std::int64_t recent) {
    const std::int64_t rows = recent + sinks < length ? recent + sinks : length;
    attention_.kv_kept.insert(attention_.kv_kept.end(), kv_heads, static_cast<std::uint64_t>(rows));
  };
  if (layers_.evicts(layer)) {
    const HeadLists kept = choose_kept(prompt, layer);
    tell_listener(prompt, layer, &kept);
    if (prompt.diagnosis != nullptr) diagnose_kept(prompt, layer, kept);
    cache_->evict(prompt.sequence, layer, {kept.begin, kept.values});
    for (const std::int64_t rows : tables.rows(prompt.sequence, layer)) {
      attention_.kv_kept.push_back(static_cast<std::uint64_t>(rows));
    }
    return;
  }
  tell_listener(prompt, layer, nullptr);
  if (layers_.slides(layer)) {
    const std::int64_t sinks = plan_.decode.whole("sinks"), recent = plan_.decode.whole("window");
    if (prompt.diagnosis != nullptr) diagnose_kept(prompt, layer, ends_of(length, sinks, recent));
    tables.release_between(prompt.sequence, layer, sinks, length - recent + 1);
    return count_kept(sinks, recent);
  }
  const std::int64_t window = config_.layer_window[static_cast<std::size_t>(layer)];
  if (window > 0) tables.release_between(prompt.sequence, layer, 0, length - window + 1);
  count_kept(0, window > 0 ? window : length);
}

// Where the device does not: on the host, by the code of the CPU backend; all keys of the layer go there, and
// the last queries.
HeadLists DeviceModel::choose_kept(const Prompt& prompt, int layer) {
  if (keeps_on_device()) return keep_on_device(prompt, layer);
  mark(&clock_, Phase::kPrefill, layer, Operation::kEstimate);
  const std::int64_t tokens = prompt.tokens();
  const std::int64_t window = std::min(tokens, plan_.decode.whole("window"));
  const std::int64_t first = tokens - window;
  const StreamPool::Block gathered = pool_.take(bytes_of(tokens * kv_width()));
  const StreamPool::Block wide_keys = pool_.take_array<float>(tokens * kv_width());
  const StreamPool::Block wide_queries = pool_.take_array<float>(window * q_width());
  cache_->gather_keys(prompt.sequence, layer, tokens, gathered.data());
  convert(gathered.data(), dtype_, wide_keys.data(), DType::kF32, tokens * kv_width(), stream_);
  convert(prompt.rows.queries + bytes_of(first * q_width()), dtype_, wide_queries.data(), DType::kF32,
          window * q_width(), stream_);
  const std::unique_ptr<float[]> keys(new float[static_cast<std::size_t>(tokens * kv_width())]);
  // Of all rows, but only the last ones are written, and read: the others never become memory.
  const std::unique_ptr<float[]> queries(new float[static_cast<std::size_t>(tokens * q_width())]);
  wait_for_stream("keys");
  copy_to_host(keys.get(), wide_keys.data(), wide_keys.bytes(), stream_);
  copy_to_host(queries.get() + first * q_width(), wide_queries.data(), wide_queries.bytes(), stream_);
  stream_.synchronize();

  SelectInput input;
  input.tokens = tokens;
  input.heads = static_cast<int>(config_.heads);
  input.kv_heads = static_cast<int>(config_.kv_heads);
  input.head_dim = static_cast<int>(config_.head_dim);
  input.q = queries.get();
  input.k = keys.get();
  input.scale = config_.attention_scale;
  input.model_dtype = dtype_;
  input.share_group = plan_.share_group;
  input.layer = layers_.index_of(layer);
  input.layers = layers_.count();
  input.ranks.tp = input.ranks.group = shape_.tp.host;
  input.ranks.kv_replicas = kv_replicas_;
  input.ranks.on_scored = [&] { mark(&clock_, Phase::kPrefill, layer, Operation::kSelect); };
  return select_kept(input, plan_.decode);
}

}  // namespace tessera::cuda
