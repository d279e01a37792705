// Prompts: a layer at a time over all tokens, since methods that look at the last queries need every key of a
// layer before its first query attends.
#include <algorithm>
#include <optional>

#include "attention/needed_units.hpp"
#include "attention/sparse.hpp"
#include "parallel/merge.hpp"
#include "runtime/model/accounting.hpp"
#include "runtime/model/diagnosis.hpp"
#include "runtime/model/step_timer.hpp"

namespace tessera {

// This rank's share of a prompt.
struct Transformer::Prompt {
  int sequence = 0;
  const SequencePartition& partition;
  int rank = 0;                         // sp
  std::vector<std::int32_t> positions;  // (T)
  DiagnosisSums* diagnosis = nullptr;

  std::int64_t tokens() const { return static_cast<std::int64_t>(positions.size()); }
};

// What this rank gets from others for one layer, and gives them.
struct Transformer::Fetch {
  UnitLists wanted;
  UnitLists given;
};

void Transformer::prefill(const PrefillRequest& request, std::vector<float>& logits) {
  const SequencePartition& partition = *request.partition;
  const Prompt prompt{request.sequence, partition, grid_.place.sp, partition.positions_of(grid_.place.sp),
                      request.diagnosis};
  const std::int64_t local = prompt.tokens();
  const std::int32_t* positions = prompt.positions.data();
  std::vector<std::int32_t> local_tokens(prompt.positions.size());
  for (std::size_t i = 0; i < local_tokens.size(); ++i)
    local_tokens[i] = request.tokens[static_cast<std::size_t>(positions[i])];

  const std::int64_t q_width = share_.heads * config_.head_dim;
  const std::int64_t kv_width = share_.kv_heads * config_.head_dim;
  exchange_ = {};
  attention_ = {};
  embed(local_tokens, Phase::kPrefill);
  float* queries = queries_.at_least(static_cast<std::size_t>(local * q_width));
  attended_.at_least(static_cast<std::size_t>(local * q_width));
  float* k = kv_rows_.at_least(static_cast<std::size_t>(2 * std::min(kChunkTokens, local) * kv_width));
  float* v = k + std::min(kChunkTokens, local) * kv_width;

  for (int layer = 0; layer < config_.layers; ++layer) {
    for (std::int64_t first = 0; first < local; first += kChunkTokens) {
      const std::int64_t rows = std::min(kChunkTokens, local - first);
      project_qkv(Phase::kPrefill, layer, first, rows, positions + first, queries + first * q_width, k, v);
      StepTimer timer(*this, Phase::kPrefill, layer, Operation::kQkv);
      cache_.append({prompt.sequence, layer, rows, positions + first, k, v, kv_width});
    }
    attend_prompt(prompt, layer);
    for (std::int64_t first = 0; first < local; first += kChunkTokens) {
      finish_layer(Phase::kPrefill, layer, first, std::min(kChunkTokens, local - first));
    }
  }

  pick_rows(prompt.positions, request.logit_positions);
  compute_logits(Phase::kPrefill, static_cast<std::int64_t>(request.logit_positions.size()), logits);
}

// Selects, attends, and leaves in the cache what decoding will need.
void Transformer::attend_prompt(const Prompt& prompt, int layer) {
  const bool selects = layers_.sparse_prefill(layer);
  const bool evicts = layers_.evicts(layer);
  const std::size_t rows = static_cast<std::size_t>(prompt.tokens() * share_.heads);
  SelectInput input;
  PrefillChoice choice;
  HeadLists kept;
  std::uint64_t selecting = 0;  // bytes received
  if (selects || evicts) {
    std::optional<StepTimer> timer;
    const auto time_as = [&](Operation operation) {
      timer.emplace(*this, Phase::kPrefill, layer, operation);
    };
    time_as(Operation::kEstimate);
    float* keys =
        keys_.at_least(static_cast<std::size_t>(prompt.tokens() * share_.kv_heads * config_.head_dim));
    cache_.read_keys(prompt.sequence, layer, prompt.positions, keys);
    input = select_input(prompt, layer, keys);
    input.ranks.bytes_received = &selecting;
    input.ranks.on_scored = [&] { time_as(Operation::kSelect); };
    if (selects) choice = select_prefill(input, plan_.prefill);
    if (evicts) time_as(Operation::kEstimate);
    if (evicts) kept = select_kept(input, plan_.decode);
    input.ranks.on_scored = nullptr;
    if (selects && ladder_totals_ != nullptr) climb_ladder(input);
  }
  exchange_.bytes_selecting.push_back(selecting);  // plan_fetch adds its lists

  const PrefillSelection* selection = selects ? &choice.selection : nullptr;
  const bool diagnosed = prompt.diagnosis != nullptr;
  float* lse = grid_.shape.sp > 1 || diagnosed ? row_lse_.at_least(rows) : nullptr;
  attend_rows(prompt, layer, selection, attended_.at_least(0), lse);
  count_prompt(prompt, layer, selection);
  if (selection_listener_ != nullptr && (selects || evicts)) {
    selection_listener_->prefill_layer({layer, &prompt.partition, prompt.positions, input.q, input.k,
                                        selects ? &choice : nullptr, evicts ? &kept : nullptr});
  }
  if (diagnosed && selects) diagnose_prompt(prompt, layer, attended_.at_least(0), lse);
  trim_cache(prompt, layer, kept);
}

SelectInput Transformer::select_input(const Prompt& prompt, int layer, const float* keys) {
  SelectInput input;
  input.tokens = prompt.partition.length();
  input.heads = static_cast<int>(share_.heads);
  input.kv_heads = static_cast<int>(share_.kv_heads);
  input.head_dim = static_cast<int>(config_.head_dim);
  input.q = queries_.at_least(0);
  input.k = keys;
  input.scale = config_.attention_scale;
  input.share_group = plan_.share_group;
  input.layer = layers_.index_of(layer);
  input.layers = layers_.count();
  input.ranks = select_ranks();
  input.ranks.partition = &prompt.partition;
  return input;
}

SelectRanks Transformer::select_ranks() {
  SelectRanks ranks;
  ranks.sp = grid_.sp.get();
  ranks.tp = grid_.tp.get();
  ranks.group = grid_.group.get();
  ranks.kv_replicas = static_cast<int>(grid_.shape.tp * share_.kv_heads / config_.kv_heads);
  return ranks;
}

void Transformer::climb_ladder(const SelectInput& input) {
  const auto ranges = input.ranks.partition->ranges_of(grid_.place.sp);
  const int heads_a_list = input.share_group ? input.heads / input.kv_heads : 1;
  for (std::size_t i = 0; i < ladder_.size(); ++i) {
    const PairCounts counts = count_pairs(select_prefill(input, ladder_[i]).selection, ranges);
    PairTotals& total = (*ladder_totals_)[i];
    for (std::size_t list = 0; list < counts.visible.size(); ++list) {
      total.visible += counts.visible[list] * static_cast<std::uint64_t>(heads_a_list);
      total.causal += counts.causal[list] * static_cast<std::uint64_t>(heads_a_list);
    }
  }
}

void Transformer::set_ladder(std::span<const MethodSettings> steps, std::vector<PairTotals>* totals) {
  ladder_ = steps;
  ladder_totals_ = totals;
  if (totals != nullptr) totals->resize(steps.size());
}

// Dense layers know what every rank needs from the partition alone; what a selection needs is told to the
// ranks that hold it. Then all decide together whether that is so much that everything may as well travel.
Transformer::Fetch Transformer::plan_fetch(const Prompt& prompt, int layer,
                                           const PrefillSelection* selection) {
  const int ranks = grid_.shape.sp;
  const int kv_heads = static_cast<int>(share_.kv_heads);
  const std::int64_t window = config_.layer_window[static_cast<std::size_t>(layer)];
  const KvView view = cache_.view(prompt.sequence, layer, prompt.partition.length());
  const auto dense_of = [&](int rank) { return dense_units(kv_heads, prompt.partition, rank, window); };
  const auto all_of = [&](int rank) { return all_units(kv_heads, prompt.partition, rank); };
  const auto bytes_of = [&](const UnitLists& lists) {
    std::int64_t bytes = 0;
    for (const auto& list : lists) {
      for (const UnitId id : list) bytes += static_cast<std::int64_t>(unit_bytes(KvUnit::of(id), view));
    }
    return bytes;
  };

  Fetch fetch;
  fetch.wanted = selection == nullptr ? dense_of(prompt.rank)
                                      : needed_units(*selection, kv_heads, prompt.partition, prompt.rank);
  UnitLists everything = all_of(prompt.rank);
  std::int64_t needed_and_full[2] = {bytes_of(fetch.wanted), bytes_of(everything)};
  exchange_.bytes_needed.push_back(static_cast<std::uint64_t>(needed_and_full[0]));
  exchange_.bytes_full.push_back(static_cast<std::uint64_t>(needed_and_full[1]));
  bool gathers = plan_.exchange == ExchangeMode::kGather;
  if (plan_.exchange == ExchangeMode::kAuto) {
    grid_.sp->all_reduce_sum(needed_and_full, 2);
    gathers =
        static_cast<double>(needed_and_full[0]) >= kGatherShare * static_cast<double>(needed_and_full[1]);
  }
  if (gathers) {
    fetch.wanted = std::move(everything);
    fetch.given = given_units(prompt.rank, ranks, all_of);
  } else if (selection == nullptr) {
    fetch.given = given_units(prompt.rank, ranks, dense_of);
  } else {
    fetch.given = exchange_lists(*grid_.sp, fetch.wanted);
    for (const auto& list : fetch.given) exchange_.bytes_selecting.back() += list.size() * sizeof(UnitId);
  }
  return fetch;
}

// Attention of this rank's rows over the selected keys (null: all that the layer's mask shows). What other
// ranks hold travels while local keys are attended; the two results merge. lse may be null on one sp rank.
void Transformer::attend_rows(const Prompt& prompt, int layer, const PrefillSelection* selection, float* out,
                              float* lse) {
  const std::int64_t length = prompt.partition.length();
  PrefillAttentionParams p;
  p.tokens = prompt.tokens();
  p.heads = static_cast<int>(share_.heads);
  p.q = queries_.at_least(0);
  p.positions = prompt.positions.data();
  p.kv = cache_.view(prompt.sequence, layer, length);
  p.scale = config_.attention_scale;
  p.window = config_.layer_window[static_cast<std::size_t>(layer)];
  p.out = out;
  p.lse = lse;
  const auto attend = [&] {
    StepTimer timer(*this, Phase::kPrefill, layer, Operation::kAttend);
    if (selection == nullptr) {
      prefill_attention(p);
    } else {
      sparse_prefill_attention(p, *selection);
    }
  };
  if (grid_.shape.sp == 1) return attend();

  const KvView local = p.kv;
  std::optional<UnitExchange> exchange;
  {
    StepTimer timer(*this, Phase::kPrefill, layer, Operation::kExchange);
    Fetch fetch = plan_fetch(prompt, layer, selection);
    exchange.emplace(*grid_.sp, std::move(fetch.wanted), std::move(fetch.given),
                     [&local](UnitId id) { return unit_bytes(KvUnit::of(id), local); });
    auto* buffer =
        reinterpret_cast<std::byte*>(exchanged_.at_least(exchange->buffer_bytes() / sizeof(float)));
    exchange->start(buffer,
                    [&local](UnitId id, std::byte* target) { pack_unit(KvUnit::of(id), local, target); });
  }
  attend();
  {
    StepTimer timer(*this, Phase::kPrefill, layer, Operation::kExchange);
    exchange->finish([&](UnitId id, const std::byte* source) {
      const KvUnit unit = KvUnit::of(id);
      place_unit(unit, local, source, cache_.place_guest(prompt.sequence, layer, unit.kv_head, unit.block()));
    });
    exchange_.bytes_selected.push_back(exchange->counts().bytes_received);
    exchange_.units_sent.push_back(exchange->counts().units_sent);
    exchange_.units_received.push_back(exchange->counts().units_received);
  }
  if (exchange->counts().units_received > 0) {
    const std::size_t rows = static_cast<std::size_t>(p.tokens * p.heads);
    p.kv = cache_.guest_view(prompt.sequence, layer, length);
    p.out = guest_out_.at_least(rows * static_cast<std::size_t>(config_.head_dim + 1));
    p.lse = p.out + rows * static_cast<std::size_t>(config_.head_dim);
    attend();
    StepTimer timer(*this, Phase::kPrefill, layer, Operation::kAttend);
    const float* outs[] = {out, p.out};
    const float* lses[] = {lse, p.lse};
    merge_partials(
        {2, static_cast<std::int64_t>(rows), static_cast<int>(config_.head_dim), outs, lses, out, lse});
  }
  cache_.drop_guests(prompt.sequence, layer);
}

void Transformer::count_prompt(const Prompt& prompt, int layer, const PrefillSelection* selection) {
  const auto heads = static_cast<std::size_t>(share_.heads);
  if (selection == nullptr) {
    const DensePairs pairs =
        dense_pairs(prompt.partition, prompt.rank, config_.layer_window[static_cast<std::size_t>(layer)]);
    attention_.pairs_visible.insert(attention_.pairs_visible.end(), heads, pairs.visible);
    attention_.pairs_executed.insert(attention_.pairs_executed.end(), heads, pairs.executed);
    return;
  }
  const PairCounts counts = count_pairs(*selection, prompt.partition.ranges_of(prompt.rank));
  const std::size_t heads_a_list = heads / static_cast<std::size_t>(selection->heads);
  for (std::size_t head = 0; head < heads; ++head) {
    attention_.pairs_visible.push_back(counts.visible[head / heads_a_list]);
    attention_.pairs_executed.push_back(counts.executed[head / heads_a_list]);
  }
}

// Leaves in the cache what decoding reads: the method's choice, the window of a window layer, or everything.
void Transformer::trim_cache(const Prompt& prompt, int layer, const HeadLists& kept) {
  const std::int64_t length = prompt.partition.length();
  const std::int64_t window = config_.layer_window[static_cast<std::size_t>(layer)];
  const auto count_kept = [&](std::int64_t sinks, std::int64_t recent) {
    std::uint64_t rows = 0;
    for (const std::int32_t position : prompt.positions)
      rows += position < sinks || position >= length - recent;
    attention_.kv_kept.insert(attention_.kv_kept.end(), static_cast<std::size_t>(share_.kv_heads), rows);
  };
  if (!layers_.evicts(layer) && !layers_.slides(layer)) {
    if (window > 0) cache_.release_before(prompt.sequence, layer, length - window + 1);
    return count_kept(0, window > 0 ? window : length);
  }

  LastRow whole;
  if (prompt.diagnosis != nullptr) whole = attend_last_row(prompt, layer, false);
  if (layers_.slides(layer)) {
    const std::int64_t sinks = plan_.decode.whole("sinks"), recent = plan_.decode.whole("window");
    cache_.release_between(prompt.sequence, layer, sinks, length - recent + 1);
    count_kept(sinks, recent);
  } else {
    cache_.evict(prompt.sequence, layer, {kept.begin, kept.values});
    const KvView view = cache_.view(prompt.sequence, layer, length);
    for (int head = 0; head < share_.kv_heads; ++head)
      attention_.kv_kept.push_back(static_cast<std::uint64_t>(view.rows(head)));
  }
  if (prompt.diagnosis == nullptr) return;
  const LastRow left = attend_last_row(prompt, layer, true);
  if (prompt.rank != 0) return;  // all sp ranks hold the merged row
  add_diagnosis(*prompt.diagnosis, diagnosis_shape(), Phase::kDecode, layer, 1,
                {left.out.data(), left.lse.data()}, {whole.out.data(), whole.lse.data()});
}

// The last row of the prompt over what the cache now holds of the layer (masked: what a decode step would see
// of it), on every sp rank.
Transformer::LastRow Transformer::attend_last_row(const Prompt& prompt, int layer, bool masked) {
  const OpTimes times = times_;
  const std::int64_t length = prompt.partition.length();
  const auto width = static_cast<std::size_t>(share_.heads * config_.head_dim);
  const int owner = prompt.partition.owner_of_block((length - 1) / kBlockTokens);
  std::vector<float> query(width);
  if (prompt.rank == owner) {
    std::copy_n(queries_.at_least(0) + (prompt.positions.size() - 1) * width, width, query.data());
  }
  grid_.sp->broadcast(query.data(), width * sizeof(float), owner);
  const auto position = static_cast<std::int32_t>(length - 1);
  Step step;
  step.count = 1;
  step.q = query.data();
  step.positions = &position;
  step.views = {cache_.view(prompt.sequence, layer, length)};
  if (masked) mask_step(layer, step);
  LastRow row{std::vector<float>(width), std::vector<float>(static_cast<std::size_t>(share_.heads))};
  attend_step(layer, step, nullptr, row.out.data(), row.lse.data());
  times_ = times;
  return row;
}

void Transformer::diagnose_prompt(const Prompt& prompt, int layer, const float* out, const float* lse) {
  const OpTimes times = times_;  // what the comparison takes is not the method's
  const ExchangeCounts exchange = exchange_;
  const std::size_t rows = static_cast<std::size_t>(prompt.tokens() * share_.heads);
  float* dense_out = diagnosed_.at_least(rows * static_cast<std::size_t>(config_.head_dim + 1));
  float* dense_lse = dense_out + rows * static_cast<std::size_t>(config_.head_dim);
  attend_rows(prompt, layer, nullptr, dense_out, dense_lse);
  add_diagnosis(*prompt.diagnosis, diagnosis_shape(), Phase::kPrefill, layer, prompt.tokens(), {out, lse},
                {dense_out, dense_lse});
  times_ = times;
  exchange_ = exchange;
}

}  // namespace tessera
