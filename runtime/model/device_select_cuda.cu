// What a sparse prefill method shows each query of a layer, chosen on the device and attended to: blocks,
// columns and diagonals, or a window. Nothing is read back before the prompt is through: how many pairs a
// choice lets through is counted on the device, too.
#include <algorithm>
#include <numeric>

#include "attention/block_select_cuda.hpp"
#include "attention/pair_counts_cuda.hpp"
#include "attention/selection_builder.hpp"
#include "attention/slash_select_cuda.hpp"
#include "attention/window_sums_cuda.hpp"
#include "runtime/core/error.hpp"
#include "runtime/model/accounting.hpp"
#include "runtime/model/device_prompt.hpp"

namespace tessera::cuda {
namespace {

constexpr std::int64_t kForcedBlocks = 3;  // of block_sparse: the first, the query's own, the one before

SlashSelectProblem line_problem(const MethodSettings& settings, const WindowSumsProblem& sums) {
  SlashSelectProblem problem;
  problem.tokens = sums.tokens;
  problem.lists = sums.lists();
  if (settings.method().budget != BudgetRule::kThreshold) {
    problem.columns = settings.whole("columns");
    problem.diagonals = settings.whole("diagonals");
    return problem;
  }
  const double alpha = settings.real("alpha");
  if (alpha >= 1) {  // whatever rounding says
    problem.columns = problem.diagonals = sums.tokens;
    return problem;
  }
  problem.columns = problem.diagonals = settings.whole("floor");
  problem.coverage = coverage_of(alpha, sums.rows(), sums.heads / sums.lists());
  return problem;
}

SlashSelectProblem everything(const WindowSumsProblem& sums) {
  return {sums.tokens, sums.lists(), sums.tokens, sums.tokens};
}

}  // namespace

// Where lists go, of budgets up to those of a problem.
struct DeviceModel::LineRoom {
  LineRoom(StreamPool& pool, const SlashSelectProblem& most)
      : columns(pool.take_array<std::int32_t>(most.lists * most.kept_columns())),
        diagonals(pool.take_array<std::int32_t>(most.lists * most.kept_diagonals())),
        counts(pool.take_array<std::int32_t>(2 * most.lists)),
        row_begin(pool.take_array<std::int64_t>(most.lists * most.query_blocks() + 1)),
        entries(pool.take_array<BlockEntry>(slash_list_entries(most))),
        workspace(pool.take(slash_select_workspace(most))) {}

  StreamPool::Block columns, diagonals, counts, row_begin, entries, workspace;
};

// ---- once a prompt ----------------------------------------------------------------------------------------

void DeviceModel::make_pair_sums() {
  if (plan_.prefill.method().unit != SelectUnit::kColumnsAndDiagonals) return;
  const std::size_t bytes =
      static_cast<std::size_t>(2 * layers_.count() * prompt_lists()) * sizeof(std::uint64_t);
  pair_sums_ = DeviceBuffer(bytes, shape_.device, MemoryKind::kWorkspace, meter_);
  host_pair_sums_ = PinnedBuffer(bytes);
}

void DeviceModel::prepare_selection(Prompt& prompt) {
  const MethodSettings& prefill = plan_.prefill;
  const SelectUnit unit = prefill.method().unit;
  if (unit == SelectUnit::kAll) return;
  const TokenRange all[] = {{0, prompt.tokens()}};
  const int rows = unit == SelectUnit::kBlocks ? static_cast<int>(prefill.whole("edge")) : kQueryBlockRows;
  // From memory that is not pinned, here and below: copied before the call returns.
  const auto upload = [&](const auto& values) {
    StreamPool::Block block = pool_.take(values.size() * sizeof(values[0]));
    copy_to_device(block.data(), values.data(), block.bytes(), stream_);
    return block;
  };
  prompt.query_rows = upload(query_rows(all, rows));
  if (unit == SelectUnit::kColumnsAndDiagonals) {
    fill_bytes(pair_sums_.data(), 0, pair_sums_.bytes(), stream_);
  } else if (unit == SelectUnit::kLocalWindow) {
    const auto first = [&](std::string_view name) {
      std::vector<std::int32_t> list(
          static_cast<std::size_t>(std::min(prefill.whole(name), prompt.tokens())));
      std::iota(list.begin(), list.end(), 0);
      return list;
    };
    const std::vector<std::int32_t> sinks = first("sinks");
    prompt.window = select_diagonals(prompt.tokens(), true, {sinks}, {first("window")});
    prompt.window_rows = upload(prompt.window.row_begin);
    prompt.window_entries = upload(prompt.window.entries);
    prompt.window_columns = upload(sinks);
    prompt.window_count = upload(std::vector<std::int32_t>{static_cast<std::int32_t>(sinks.size())});
  }
}

// ---- a layer ----------------------------------------------------------------------------------------------

// Query blocks from that of row `first` on. lists: of the whole prompt.
void DeviceModel::attend_lists(const Prompt& prompt, int layer, std::int64_t first,
                               const PrefillLists& lists) {
  if (first >= prompt.tokens()) return;
  mark(&clock_, Phase::kPrefill, layer, Operation::kAttend);
  const std::int64_t first_block = first / lists.rows_per_block;
  SparsePrefillParams p;
  p.tokens = prompt.tokens();
  p.heads = static_cast<int>(config_.heads);
  p.q = prompt.rows.queries;
  p.q_row_stride = q_width();
  p.rows = prompt.query_rows.as<const QueryRows>() + first_block;
  p.row_blocks = lists.query_blocks - first_block;
  p.lists = lists;
  p.kv = cache_->view(prompt.sequence, layer, prompt.tokens());
  p.pool_slots = cache_->capacity();
  p.scale = config_.attention_scale;
  p.out = prompt.rows.attended;
  p.lse = prompt.lse.as<float>();
  const StreamPool::Block workspace =
      pool_.take(lists.columns == nullptr
                     ? sparse_prefill_workspace(p.heads, p.row_blocks)
                     : sparse_prefill_workspace(p.heads, p.row_blocks, lists.heads, prompt.tokens()));
  p.workspace = workspace.data();
  p.counters = prefill_counters_.as<std::uint32_t>();
  p.stream = stream_;
  sparse_prefill_attention(p);
}

// block_sparse: every query head chooses its blocks, and attends to those alone.
void DeviceModel::attend_chosen_blocks(Prompt& prompt, int layer, std::int64_t first) {
  mark(&clock_, Phase::kPrefill, layer, Operation::kEstimate);
  DeviceBlockSelectParams select;
  select.problem = {prompt.tokens(),
                    static_cast<int>(config_.heads),
                    static_cast<int>(config_.kv_heads),
                    static_cast<int>(config_.head_dim),
                    plan_.prefill.whole("edge"),
                    plan_.prefill.whole("blocks")};
  const BlockSelectProblem& problem = select.problem;
  const StreamPool::Block means = pool_.take(block_select_workspace(problem)),
                          row_begin = pool_.take_array<std::int64_t>(problem.heads * problem.rows() + 1),
                          entries = pool_.take_array<BlockEntry>(block_list_entries(problem));
  select.q = prompt.rows.queries;
  select.q_row_stride = q_width();
  select.kv = cache_->view(prompt.sequence, layer, prompt.tokens());
  select.workspace = means.data();
  select.row_begin = row_begin.as<std::int64_t>();
  select.entries = entries.as<BlockEntry>();
  select.stream = stream_;
  select_blocks_on_device(select);
  PrefillLists lists;
  lists.heads = problem.heads;
  lists.rows_per_block = static_cast<int>(problem.edge);
  lists.query_blocks = problem.rows();
  lists.row_begin = select.row_begin;
  lists.entries = select.entries;
  attend_lists(prompt, layer, first, lists);
  count_chosen_pairs(problem, first / problem.edge);
  if (listens_to_prefill()) download_blocks(prompt, lists);
}

// How many blocks a row keeps is known beforehand; the last of them is its own, of which it sees a triangle.
void DeviceModel::count_chosen_pairs(const BlockSelectProblem& problem, std::int64_t first_executed) {
  DensePairs pairs;
  for (std::int64_t row = 0; row < problem.rows(); ++row) {
    const std::int64_t blocks = std::min(row + 1, std::max(problem.budget, kForcedBlocks));
    const std::int64_t queries = std::min(problem.edge, problem.tokens - row * problem.edge);
    pairs.visible +=
        static_cast<std::uint64_t>((blocks - 1) * problem.edge * queries + queries * (queries + 1) / 2);
    if (row >= first_executed) {
      pairs.executed += static_cast<std::uint64_t>(blocks * problem.edge * queries);
    }
  }
  add_pairs(pairs.visible, pairs.executed);
}

// streaming: one list serves all heads and layers.
void DeviceModel::attend_window(Prompt& prompt, int layer, std::int64_t first) {
  PrefillLists lists;
  lists.heads = 1;
  lists.query_blocks = prompt.window.query_blocks();
  lists.row_begin = prompt.window_rows.as<const std::int64_t>();
  lists.entries = prompt.window_entries.as<const BlockEntry>();
  lists.columns = prompt.window_columns.as<const std::int32_t>();
  lists.column_stride = static_cast<std::int64_t>(prompt.window.columns.size());
  lists.column_counts = prompt.window_count.as<const std::int32_t>();
  attend_lists(prompt, layer, first, lists);
  if (prompt.window_visible == 0) prompt.window_visible = count_pairs(prompt.window).visible.front();
  const TokenRange executed[] = {{first, prompt.tokens()}};
  add_pairs(prompt.window_visible, count_pairs(prompt.window, executed).executed.front());
  if (listens_to_prefill()) spread_window(prompt);
}

// vertical_slash and flexprefill: every list of heads chooses columns and diagonals by the softmax of the
// last queries.
void DeviceModel::attend_chosen_lines(Prompt& prompt, int layer, std::int64_t first) {
  LineSums sums =
      sum_window(prompt, layer,
                 {prompt.tokens(), static_cast<int>(config_.heads), static_cast<int>(config_.kv_heads),
                  static_cast<int>(config_.head_dim), plan_.prefill.whole("window"), plan_.share_group});
  mark(&clock_, Phase::kPrefill, layer, Operation::kSelect);
  const SlashSelectProblem problem = line_problem(plan_.prefill, sums.problem);
  const bool climbs = ladder_totals_ != nullptr;
  const LineRoom room(pool_, climbs ? everything(sums.problem) : problem);
  std::uint64_t* const counts = pair_sums_.as<std::uint64_t>() + 2 * prompt_lists() * layers_.index_of(layer);
  for (std::size_t i = 0; climbs && i < ladder_.size(); ++i) {
    const SlashSelectParams rung = choose_lines(line_problem(ladder_[i], sums.problem), sums, room);
    count_line_pairs(rung, 0, ladder_sums_.as<std::uint64_t>() + 2 * prompt_lists() * static_cast<int>(i));
  }
  const SlashSelectParams select = choose_lines(problem, sums, room);
  sums.columns = {};
  sums.diagonals = {};
  count_line_pairs(select, first / kQueryBlockRows, counts);
  add_pairs(0, 0);  // read_pairs fills them in
  attend_lists(prompt, layer, first, lists_of(select));
  if (listens_to_prefill()) download_lines(prompt, select);
}

DeviceModel::LineSums DeviceModel::sum_window(const Prompt& prompt, int layer,
                                              const WindowSumsProblem& problem) {
  mark(&clock_, Phase::kPrefill, layer, Operation::kEstimate);
  LineSums sums;
  sums.problem = problem;
  sums.columns = pool_.take_array<Fixed>(problem.lists() * problem.tokens);
  if (problem.use == WindowUse::kLines)
    sums.diagonals = pool_.take_array<Fixed>(problem.lists() * problem.tokens);
  const StreamPool::Block workspace = pool_.take(window_sums_workspace(problem));
  DeviceWindowSumsParams p;
  p.problem = problem;
  p.q = prompt.rows.queries + bytes_of((problem.tokens - problem.rows()) * q_width());
  p.q_row_stride = q_width();
  p.kv = cache_->view(prompt.sequence, layer, problem.tokens);
  p.pool_slots = cache_->capacity();
  p.scale = config_.attention_scale;
  p.workspace = workspace.data();
  p.columns = sums.columns.as<Fixed>();
  p.diagonals = sums.diagonals.as<Fixed>();
  p.stream = stream_;
  window_sums_on_device(p);
  return sums;
}

SlashSelectParams DeviceModel::choose_lines(const SlashSelectProblem& problem, const LineSums& sums,
                                            const LineRoom& room) {
  SlashSelectParams p;
  p.problem = problem;
  p.column_sums = sums.columns.as<const Fixed>();
  p.diagonal_sums = sums.diagonals.as<const Fixed>();
  p.workspace = room.workspace.data();
  p.columns = room.columns.as<std::int32_t>();
  p.diagonals = room.diagonals.as<std::int32_t>();
  p.counts = room.counts.as<std::int32_t>();
  p.row_begin = room.row_begin.as<std::int64_t>();
  p.entries = room.entries.as<BlockEntry>();
  p.stream = stream_;
  select_slashes_on_device(p);
  return p;
}

PrefillLists DeviceModel::lists_of(const SlashSelectParams& select) {
  PrefillLists lists;
  lists.heads = select.problem.lists;
  lists.query_blocks = select.problem.query_blocks();
  lists.row_begin = select.row_begin;
  lists.entries = select.entries;
  lists.columns = select.columns;
  lists.column_stride = select.problem.kept_columns();
  lists.column_counts = select.counts;  // of columns: those of diagonals follow
  return lists;
}

// counts: (2, lists) visible and executed, added to.
void DeviceModel::count_line_pairs(const SlashSelectParams& select, std::int64_t first_executed,
                                   std::uint64_t* counts) {
  DevicePairCountsParams p;
  p.tokens = select.problem.tokens;
  p.lists = lists_of(select);
  p.first_executed = first_executed;
  const StreamPool::Block workspace = pool_.take(pair_counts_workspace(p.tokens, p.lists));
  p.workspace = workspace.data();
  p.visible = counts;
  p.executed = counts + select.problem.lists;
  p.stream = stream_;
  count_pairs_on_device(p);
}

// ---- what was counted -------------------------------------------------------------------------------------

void DeviceModel::set_ladder(std::span<const MethodSettings> steps, std::vector<PairTotals>* totals) {
  TESSERA_CHECK(steps.empty() || plan_.prefill.method().unit == SelectUnit::kColumnsAndDiagonals);
  ladder_ = steps;
  ladder_totals_ = totals;
  ladder_sums_ = {};
  if (totals == nullptr) return;
  const DeviceScope scope(shape_.device);
  totals->resize(steps.size());
  const std::size_t bytes =
      2 * steps.size() * static_cast<std::size_t>(prompt_lists()) * sizeof(std::uint64_t);
  ladder_sums_ = pool_.take(bytes);
  fill_bytes(ladder_sums_.data(), 0, bytes, stream_);
}

// After the last layer.
void DeviceModel::fetch_pairs(const Prompt& prompt) {
  copy_to_host(host_pair_sums_.data(), pair_sums_.data(), pair_sums_.bytes(), stream_);
  if (ladder_totals_ == nullptr) return;
  wait_for_stream("pairs of a ladder");
  std::vector<std::uint64_t> sums(ladder_sums_.bytes() / sizeof(std::uint64_t));
  copy_to_host(sums.data(), ladder_sums_.data(), ladder_sums_.bytes(), stream_);
  stream_.synchronize();
  fill_bytes(ladder_sums_.data(), 0, ladder_sums_.bytes(), stream_);  // of the next prompt
  const auto lists = static_cast<std::size_t>(prompt_lists());
  const auto heads_a_list = static_cast<std::uint64_t>(config_.heads) / lists;
  for (std::size_t i = 0; i < ladder_.size(); ++i) {
    PairTotals& total = (*ladder_totals_)[i];
    for (std::size_t list = 0; list < lists; ++list)
      total.visible += sums[2 * lists * i + list] * heads_a_list;
    total.causal +=
        causal_pairs(prompt.tokens(), 0) * static_cast<std::uint64_t>(config_.heads * layers_.count());
  }
}

// Once the copy has come.
void DeviceModel::read_pairs() {
  if (host_pair_sums_.bytes() == 0) return;
  const auto heads = static_cast<std::size_t>(config_.heads),
             lists = static_cast<std::size_t>(prompt_lists());
  const std::uint64_t* sums = host_pair_sums_.as<std::uint64_t>();
  for (int layer = 0; layer < config_.layers; ++layer) {
    if (!layers_.sparse_prefill(layer)) continue;
    for (std::size_t head = 0; head < heads; ++head) {
      const std::size_t at = static_cast<std::size_t>(layer) * heads + head;
      attention_.pairs_visible[at] = sums[head / (heads / lists)];
      attention_.pairs_executed[at] = sums[lists + head / (heads / lists)];
    }
    sums += 2 * lists;
  }
}

}  // namespace tessera::cuda
