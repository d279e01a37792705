#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "jobs/bench_gpu/decode_problem.hpp"
#include "kvcache/kv_view.hpp"
#include "runtime/core/cuda_launch.hpp"

namespace tessera::cuda {
namespace {

constexpr double kBytesOfAllSets = 2.1e9;
constexpr double kMostSets = 32;
constexpr int kPagesOfBlock = kBlockTokens / kPageTokens;

// One CTA a page, one thread a channel: lowest and highest bf16 value over the page's keys, by their order as
// floats.
__global__ void bounds_of_pages(const std::uint16_t* slots, std::uint16_t* bounds) {
  const std::size_t page = blockIdx.x;
  const unsigned head_dim = blockDim.x;
  const std::uint16_t* keys = slots + page / kPagesOfBlock * (2 * kBlockTokens * head_dim) +
                              page % kPagesOfBlock * (kPageTokens * head_dim);
  float low = INFINITY;
  float high = -INFINITY;
  for (unsigned row = 0; row < kPageTokens; ++row) {
    const float value = __uint_as_float(std::uint32_t{keys[row * head_dim + threadIdx.x]} << 16);
    low = fminf(low, value);
    high = fmaxf(high, value);
  }
  std::uint16_t* out = bounds + page * 2 * head_dim + threadIdx.x;
  out[0] = static_cast<std::uint16_t>(__float_as_uint(low) >> 16);
  out[head_dim] = static_cast<std::uint16_t>(__float_as_uint(high) >> 16);
}

std::size_t size(std::int64_t count) {
  return static_cast<std::size_t>(count);
}

}  // namespace

DecodeProblemData::DecodeProblemData(const BenchShape& shape, int warps, int stages, GpuTimer& gpu)
    : gpu_(gpu), shape_(shape) {
  problem_ = {shape.sequences, shape.heads, shape.kv_heads, shape.head_dim, shape.kv_heads};
  config_ = choose_decode_config(problem_, gpu.multiprocessors());
  if (warps > 0) config_.warps = warps;
  if (stages > 0) config_.stages = stages;
  blocks_ = ceil_div(shape.length, kBlockTokens);
  score_stride_ = ceil_div(shape.length, kPageTokens);
  const std::int64_t lists = problem_.all_lists();
  slots_ = lists * blocks_;
  slot_bytes_ = 4ULL * kBlockTokens * size(shape.head_dim);
  sets_ = static_cast<int>(std::clamp(kBytesOfAllSets / kv_bytes(), 1.0, kMostSets));

  std::vector<std::int32_t> table(size(slots_));
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(1));
  table_ = gpu.upload(table);
  std::vector<const std::int32_t*> tables;
  for (int n = 0; n < shape.sequences; ++n)
    tables.push_back(table_.as<std::int32_t>() + n * shape.kv_heads * blocks_);
  tables_ = gpu.upload(tables);
  positions_ = gpu.upload(
      std::vector<std::int32_t>(size(shape.sequences), static_cast<std::int32_t>(shape.length) - 1));
  const std::size_t q_bytes = 2 * size(shape.sequences) * size(shape.heads) * size(shape.head_dim);
  for (int set = 0; set < sets_; ++set) {
    pool_.push_back(gpu.normal(size(slots_) * slot_bytes_, 3 * static_cast<std::uint64_t>(set) + 1));
    q_.push_back(gpu.normal(q_bytes, 3 * static_cast<std::uint64_t>(set) + 2));
    bounds_.push_back(gpu.empty(size(slots_) * slot_bytes_ / kPageTokens));
    fill_bounds(set);
  }
  out_ = gpu.empty(q_bytes);
  lse_ = gpu.empty(size(shape.sequences) * size(shape.heads) * sizeof(float));
  scores_ = gpu.empty(size(lists * score_stride_) * sizeof(float));
  chosen_ = gpu.empty(size(lists * (score_stride_ + 1)) * sizeof(std::int32_t));
  begin_ = gpu.empty(size(lists) * sizeof(std::int32_t));
  count_ = gpu.empty(size(lists) * sizeof(std::int32_t));
  plan_ = gpu.empty(decode_plan_bytes(problem_, config_));
  workspace_ = gpu.empty(decode_workspace_bytes(problem_, config_));
}

void DecodeProblemData::fill_bounds(int set) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(slots_ * kPagesOfBlock));
  shape.block = dim3(static_cast<unsigned>(shape_.head_dim));
  launch(bounds_of_pages, shape, gpu_.stream(), pool_[size(set)].as<std::uint16_t>(),
         bounds_[size(set)].as<std::uint16_t>());
}

int DecodeProblemData::budget_pages(double kept) const {
  return std::max(0, static_cast<int>(kept * static_cast<double>(shape_.length)) / kPageTokens - 1);
}

// Few where a step takes long, whole rounds of the sets.
int DecodeProblemData::steps() const {
  return sets_ * std::max(1, (kv_bytes() < 1e9 ? 24 : 4) / sets_);
}

GpuTimes DecodeProblemData::time_attention(const DecodeReach& reach, Plan when, int repeats) {
  plan(reach);
  synchronize(gpu_.stream());
  const bool in_step = when == Plan::kInStep;
  return gpu_.time_graph(
      steps(),
      [&] {
        for (int i = 0; i < steps(); ++i) {
          if (in_step) plan(reach);
          attend(reach, i % sets_, !in_step);
        }
      },
      repeats);
}

GpuTimes DecodeProblemData::dense(Plan when, int repeats) {
  DecodeReach reach;
  reach.positions = positions_.as<std::int32_t>();
  return time_attention(reach, when, repeats);
}

GpuTimes DecodeProblemData::packed(double kept, Plan when, int repeats) {
  std::vector<std::int32_t> rows;
  std::mt19937 rng(2);
  const double average = kept * static_cast<double>(shape_.length);
  for (int list = 0; list < problem_.all_lists(); list += 2) {
    const int more = static_cast<int>(average * (static_cast<double>(rng() % 1001) / 1000 - 0.5));
    rows.push_back(static_cast<std::int32_t>(average) + more);
    if (list + 1 < problem_.all_lists()) rows.push_back(static_cast<std::int32_t>(average) - more);
  }
  const DeviceBuffer on_device = gpu_.upload(rows);
  DecodeReach reach;
  reach.rows_of_head = on_device.as<std::int32_t>();
  return time_attention(reach, when, repeats);
}

GpuTimes DecodeProblemData::quest(double kept, const QuestParts& parts, int repeats) {
  const int budget = budget_pages(kept);
  DecodeReach reach;
  reach.positions = positions_.as<std::int32_t>();
  reach.pages = chosen_.as<std::int32_t>();
  reach.page_stride = score_stride_ + 1;
  reach.page_count = count_.as<std::int32_t>();
  reach.budget_pages = budget;
  plan(reach);
  score(0);
  select(budget);
  synchronize(gpu_.stream());
  return gpu_.time_graph(
      steps(),
      [&] {
        for (int i = 0; i < steps(); ++i) {
          if (parts.plan) plan(reach);
          if (parts.score) score(i % sets_);
          if (parts.select) select(budget);
          if (parts.attend) attend(reach, i % sets_, true);
        }
      },
      repeats);
}

void DecodeProblemData::plan(const DecodeReach& reach) {
  plan_decode({problem_, config_, reach, plan_.data(), true, gpu_.stream()});
}

void DecodeProblemData::attend(const DecodeReach& reach, int set, bool settled) {
  DecodeAttendParams p;
  p.problem = problem_;
  p.config = config_;
  p.reach = reach;
  p.plan = plan_.data();
  p.workspace = workspace_.data();
  p.q = q_[size(set)].data();
  p.slots = pool_[size(set)].data();
  p.slot_bytes = slot_bytes_;
  p.tables = tables_.as<const std::int32_t*>();
  p.table_stride = blocks_;
  p.scale = 1.0F / std::sqrt(static_cast<float>(shape_.head_dim));
  p.out = out_.data();
  p.lse = lse_.as<float>();
  p.overlaps_previous = true;
  p.settled = settled;
  p.stream = gpu_.stream();
  attend_decode(p);
}

PageSelectProblem DecodeProblemData::select_problem() const {
  return {problem_.sequences, problem_.heads, problem_.kv_heads, problem_.head_dim, false};
}

void DecodeProblemData::score(int set) {
  DevicePageScoreParams p;
  p.problem = select_problem();
  p.multiprocessors = gpu_.multiprocessors();
  p.q = q_[size(set)].data();
  p.positions = positions_.as<std::int32_t>();
  p.tables = tables_.as<const std::int32_t*>();
  p.table_stride = blocks_;
  p.bounds = bounds_[size(set)].data();
  p.scores = scores_.as<float>();
  p.score_stride = score_stride_;
  p.overlaps_previous = true;
  p.settled = true;
  p.stream = gpu_.stream();
  score_pages_on_device(p);
}

void DecodeProblemData::select(int budget) {
  DevicePageSelectParams p;
  p.problem = select_problem();
  p.budget_pages = budget;
  p.positions = positions_.as<std::int32_t>();
  p.scores = scores_.as<float>();
  p.score_stride = score_stride_;
  p.pages = chosen_.as<std::int32_t>();
  p.page_stride = score_stride_ + 1;
  p.page_begin = begin_.as<std::int32_t>();
  p.page_count = count_.as<std::int32_t>();
  p.overlaps_previous = true;
  p.settled = true;
  p.stream = gpu_.stream();
  select_pages_on_device(p);
}

}  // namespace tessera::cuda
