#include <algorithm>

#include "attention/block_select_cuda.hpp"
#include "attention/pair_counts_cuda.hpp"
#include "attention/slash_select_cuda.hpp"
#include "attention/window_sums_cuda.hpp"
#include "jobs/bench_gpu/sparse_prefill_case.hpp"
#include "jobs/plan/plan_sparsity.hpp"
#include "runtime/core/error.hpp"
#include "runtime/model/accounting.hpp"

namespace tessera::cuda {
namespace {

constexpr std::int64_t kWindow = 256;  // queries that vertical_slash and flexprefill estimate by

// Attention to lists of blocks, and columns where there are some.
class Lists {
 public:
  Lists(const PrefillProblem& problem, const PrefillLists& lists, GpuTimer& gpu) {
    const PrefillParams& dense = problem.params;
    const TokenRange all[] = {{0, dense.tokens}};
    const std::vector<QueryRows> blocks = query_rows(all, lists.rows_per_block);
    rows_ = gpu.upload(blocks);
    params_.tokens = dense.tokens;
    params_.heads = dense.heads;
    params_.q = dense.q;
    params_.q_row_stride = dense.q_row_stride;
    params_.rows = rows_.as<const QueryRows>();
    params_.row_blocks = static_cast<std::int64_t>(blocks.size());
    params_.lists = lists;
    params_.kv = dense.kv;
    params_.pool_slots = dense.pool_slots;
    params_.scale = dense.scale;
    params_.out = dense.out;
    params_.lse = dense.lse;
    workspace_ =
        gpu.empty(lists.columns == nullptr
                      ? sparse_prefill_workspace(dense.heads, params_.row_blocks)
                      : sparse_prefill_workspace(dense.heads, params_.row_blocks, lists.heads, dense.tokens));
    params_.workspace = workspace_.data();
    params_.counters = dense.counters;
    params_.stream = dense.stream;
  }
  void attend() const { sparse_prefill_attention(params_); }
  const PrefillLists& lists() const { return params_.lists; }

 private:
  DeviceBuffer rows_, workspace_;
  SparsePrefillParams params_;
};

class BlockCase : public SparsePrefillCase {
 public:
  BlockCase(std::int64_t edge, double sparsity, const PrefillProblem& problem, GpuTimer& gpu) {
    const PrefillParams& dense = problem.params;
    choice_.problem = {dense.tokens, dense.heads, dense.kv.kv_heads, dense.kv.head_dim, edge, kForcedBlocks};
    BlockSelectProblem& p = choice_.problem;
    while (p.budget < p.rows() && kept() < 1 - sparsity) ++p.budget;
    workspace_ = gpu.empty(block_select_workspace(p));
    row_begin_ = gpu.empty(static_cast<std::size_t>(p.heads * p.rows() + 1) * sizeof(std::int64_t));
    entries_ = gpu.empty(static_cast<std::size_t>(block_list_entries(p)) * sizeof(BlockEntry));
    choice_.q = dense.q;
    choice_.q_row_stride = dense.q_row_stride;
    choice_.kv = dense.kv;
    choice_.workspace = workspace_.data();
    choice_.row_begin = row_begin_.as<std::int64_t>();
    choice_.entries = entries_.as<BlockEntry>();
    choice_.stream = dense.stream;
    lists_ = std::make_unique<Lists>(
        problem, PrefillLists{p.heads, static_cast<int>(edge), p.rows(), choice_.row_begin, choice_.entries},
        gpu);
  }
  void choose() override { select_blocks_on_device(choice_); }
  void attend() override { lists_->attend(); }
  double kept(GpuTimer&) override { return kept(); }

 private:
  static constexpr std::int64_t kForcedBlocks = 3;

  // A row keeps its budget, of which its own block shows a triangle.
  double kept() const {
    const BlockSelectProblem& p = choice_.problem;
    double visible = 0;
    for (std::int64_t row = 0; row < p.rows(); ++row) {
      const auto queries = static_cast<double>(std::min(p.edge, p.tokens - row * p.edge));
      const auto blocks = static_cast<double>(std::min(row + 1, p.budget));
      visible += (blocks - 1) * static_cast<double>(p.edge) * queries + queries * (queries + 1) / 2;
    }
    return visible / static_cast<double>(causal_pairs(p.tokens, 0));
  }

  DeviceBlockSelectParams choice_;
  DeviceBuffer workspace_, row_begin_, entries_;
  std::unique_ptr<Lists> lists_;
};

// As many columns as diagonals. by_coverage: flexprefill's way to choose, of which its floor decides.
class LineCase : public SparsePrefillCase {
 public:
  LineCase(bool by_coverage, double sparsity, const PrefillProblem& problem, GpuTimer& gpu) {
    const PrefillParams& dense = problem.params;
    const std::int64_t budget = budget_of(sparsity, dense.tokens);
    const auto lists = static_cast<std::size_t>(dense.heads);
    const auto tokens = static_cast<std::size_t>(dense.tokens);
    sums_.problem = {dense.tokens, dense.heads, dense.kv.kv_heads, dense.kv.head_dim, kWindow, false};
    column_sums_ = gpu.empty(lists * tokens * sizeof(Fixed));
    diagonal_sums_ = gpu.empty(lists * tokens * sizeof(Fixed));
    sums_workspace_ = gpu.empty(window_sums_workspace(sums_.problem));
    const std::int64_t first = dense.tokens - sums_.problem.rows();
    constexpr std::int64_t kElement = 2;
    sums_.q = static_cast<const std::byte*>(dense.q) + first * dense.q_row_stride * kElement;
    sums_.q_row_stride = dense.q_row_stride;
    sums_.kv = dense.kv;
    sums_.pool_slots = dense.pool_slots;
    sums_.scale = dense.scale;
    sums_.workspace = sums_workspace_.data();
    sums_.columns = column_sums_.as<Fixed>();
    sums_.diagonals = diagonal_sums_.as<Fixed>();
    sums_.stream = dense.stream;

    choice_.problem = {dense.tokens, dense.heads, budget, budget};
    SlashSelectProblem& p = choice_.problem;
    if (by_coverage) p.coverage = 0;
    workspace_ = gpu.empty(slash_select_workspace(p));
    columns_ = gpu.empty(lists * static_cast<std::size_t>(p.kept_columns()) * sizeof(std::int32_t));
    diagonals_ = gpu.empty(lists * static_cast<std::size_t>(p.kept_diagonals()) * sizeof(std::int32_t));
    counts_ = gpu.empty(2 * lists * sizeof(std::int32_t));
    row_begin_ = gpu.empty((lists * static_cast<std::size_t>(p.query_blocks()) + 1) * sizeof(std::int64_t));
    entries_ = gpu.empty(static_cast<std::size_t>(slash_list_entries(p)) * sizeof(BlockEntry));
    choice_.column_sums = sums_.columns;
    choice_.diagonal_sums = sums_.diagonals;
    choice_.workspace = workspace_.data();
    choice_.columns = columns_.as<std::int32_t>();
    choice_.diagonals = diagonals_.as<std::int32_t>();
    choice_.counts = counts_.as<std::int32_t>();
    choice_.row_begin = row_begin_.as<std::int64_t>();
    choice_.entries = entries_.as<BlockEntry>();
    choice_.stream = dense.stream;
    lists_ = std::make_unique<Lists>(
        problem,
        PrefillLists{dense.heads, kQueryBlockRows, p.query_blocks(), choice_.row_begin, choice_.entries,
                     choice_.columns, p.kept_columns(), choice_.counts},
        gpu);
  }
  void choose() override {
    window_sums_on_device(sums_);
    select_slashes_on_device(choice_);
  }
  void attend() override { lists_->attend(); }
  double kept(GpuTimer& gpu) override {
    const auto lists = static_cast<std::size_t>(choice_.problem.lists);
    const DeviceBuffer counts = gpu.zeros(2 * lists * sizeof(std::uint64_t));
    DevicePairCountsParams p;
    p.tokens = choice_.problem.tokens;
    p.lists = lists_->lists();
    const DeviceBuffer workspace = gpu.empty(pair_counts_workspace(p.tokens, p.lists));
    p.workspace = const_cast<std::byte*>(workspace.data());
    p.visible = const_cast<std::uint64_t*>(counts.as<std::uint64_t>());
    p.executed = p.visible + lists;
    p.stream = gpu.stream();
    count_pairs_on_device(p);
    std::vector<std::uint64_t> visible(lists);
    copy_to_host(visible.data(), counts.data(), lists * sizeof(std::uint64_t), gpu.stream());
    synchronize(gpu.stream());
    double all = 0;
    for (const std::uint64_t pairs : visible) all += static_cast<double>(pairs);
    return all / (static_cast<double>(causal_pairs(p.tokens, 0)) * static_cast<double>(lists));
  }

 private:
  // The least at which diagonals at random offsets let the wanted share through.
  static std::int64_t budget_of(double sparsity, std::int64_t tokens) {
    std::int64_t low = SlashSelectProblem::kForcedDiagonals, high = tokens;
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      const auto budget = static_cast<double>(middle);
      if (random_offsets_sparsity(budget, budget, tokens) <= sparsity) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }

  DeviceWindowSumsParams sums_;
  SlashSelectParams choice_;
  DeviceBuffer column_sums_, diagonal_sums_, sums_workspace_, workspace_, columns_, diagonals_, counts_,
      row_begin_, entries_;
  std::unique_ptr<Lists> lists_;
};

}  // namespace

std::unique_ptr<SparsePrefillCase> make_sparse_prefill_case(const std::string& method, double sparsity,
                                                            const PrefillProblem& problem, GpuTimer& gpu) {
  if (method == "block_sparse-128") return std::make_unique<BlockCase>(128, sparsity, problem, gpu);
  if (method == "block_sparse-64") return std::make_unique<BlockCase>(64, sparsity, problem, gpu);
  if (method == "vertical_slash") return std::make_unique<LineCase>(false, sparsity, problem, gpu);
  if (method == "flexprefill") return std::make_unique<LineCase>(true, sparsity, problem, gpu);
  throw InternalError("internal error: sparse prefill by {} is not benched", method);
}

}  // namespace tessera::cuda
