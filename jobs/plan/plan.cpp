#include "jobs/plan/plan.hpp"

#include <algorithm>
#include <cmath>

#include "jobs/plan/plan_parts.hpp"

namespace tessera {
namespace {

// Seconds of `amount` at `rate` a second.
double time_of(double amount, double rate) {
  if (amount == 0) return 0;
  return rate > 0 ? amount / rate : GridPlan::kUnknown;
}

bool better(const GridPlan& a, const GridPlan& b) {
  if (a.fits() != b.fits()) return a.fits();
  if (!a.fits() && a.missing != b.missing) return a.missing < b.missing;
  const bool a_timed = !std::isnan(a.sample_s), b_timed = !std::isnan(b.sample_s);
  if (a_timed && b_timed && a.sample_s != b.sample_s) return a.sample_s < b.sample_s;
  if (a_timed != b_timed) return a_timed;
  return a.memory() < b.memory();
}

}  // namespace

std::string_view name_of(SparsitySource source) {
  switch (source) {
    case SparsitySource::kExact:
      return "exact";
    case SparsitySource::kTarget:
      return "target";
    case SparsitySource::kStudy:
      return "study";
    case SparsitySource::kEstimate:
      return "estimate";
    case SparsitySource::kUnknown:
      return "unknown";
  }
  return "";
}

double PlanProblem::step_tokens() const {
  return static_cast<double>(length) + (static_cast<double>(decode_steps()) + 1) / 2;
}

SampleCost predict_cost(const PlanProblem& p) {
  const ModelConfig& c = p.config;
  const LayerPlans layers(p.attention, c);
  const auto kept = [](std::uint64_t dense, double sparsity) {
    return static_cast<std::uint64_t>(std::llround(static_cast<double>(dense) * (1 - sparsity)));
  };
  std::vector<std::int64_t> positions;  // of the token that a step is given: its cache holds one more
  for (std::int64_t step = 0; step < p.decode_steps(); ++step) positions.push_back(p.length + step);

  RankReport whole;  // as one rank would report it
  AttentionCounts& counts = whole.attention;
  const auto heads = static_cast<std::size_t>(c.heads);
  for (int layer = 0; layer < c.layers; ++layer) {
    const std::int64_t window = c.layer_window[static_cast<std::size_t>(layer)];
    const std::uint64_t causal = causal_pairs(p.length, window);
    const std::uint64_t visible = layers.sparse_prefill(layer) ? kept(causal, p.prefill.value) : causal;
    std::uint64_t held = 0;
    for (const std::int64_t position : positions)
      held += static_cast<std::uint64_t>(window > 0 ? std::min(position + 1, window) : position + 1);
    const std::uint64_t read = layers.sparse_decode(layer) ? kept(held, p.decode.value) : held;
    counts.pairs_visible.insert(counts.pairs_visible.end(), heads, visible);
    counts.kv_read.insert(counts.kv_read.end(), heads, read);
  }

  CostInput input;
  input.config = &c;
  input.plan = &p.attention;
  input.prompt_tokens = p.length;
  input.decode_positions = positions;
  input.ranks = {&whole, 1};
  input.weight_passes = static_cast<double>(p.decode_steps()) / p.batch;
  const std::vector<TensorSpec> specs = declare_tensors(c);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    input.weight_bytes +=
        specs[i].rows * specs[i].columns * static_cast<std::int64_t>(size_of(p.weights.dtypes.at(i)));
  }
  input.kv_element_bytes = static_cast<std::int64_t>(size_of(p.kv_dtype));
  return cost_of(input);
}

// Nothing is taken to hide behind anything else: the sum of the parts is the longest that it can be at these
// rates.
void fill_times(const PlanProblem& p, const Machine& m, GridPlan& g) {
  const double layers = static_cast<double>(p.config.layers);
  g.linear_s = std::max(time_of(g.flops_linear, m.flops), time_of(g.weights, m.bandwidth));
  g.passes_s = time_of(g.bytes_passes, m.bandwidth);
  g.attention_s = time_of(g.flops_attention, m.attention.of(p.config.head_dim));
  g.estimate_s = time_of(g.flops_estimate, m.flops);
  g.exchange_s = time_of(g.bytes_exchanged + g.bytes_reshard, m.link_bandwidth) +
                 (g.shape.sp > 1 ? layers * m.link_latency : 0);
  const double reduces = 2 * layers + 1;  // after attention and MLP of each layer, and the embedding
  g.all_reduce_s =
      time_of(g.bytes_all_reduce, m.link_bandwidth) + (g.shape.tp > 1 ? reduces * m.link_latency : 0);
  g.prefill_s = g.linear_s + g.passes_s + g.attention_s + g.estimate_s + g.exchange_s + g.all_reduce_s;

  const double read = g.step_weights + g.step_kv + g.step_estimator;
  double waits = g.decode.weights > 1 ? reduces : 0;
  if (g.decode.kv_tokens > 1) waits += layers;
  g.step_s = std::max(time_of(read, m.bandwidth), time_of(g.step_flops, m.flops)) +
             time_of(g.step_exchanged, m.link_bandwidth) + waits * m.link_latency + layers * m.layer_latency;
  const double steps = static_cast<double>(p.output_tokens - 1);
  g.sample_s = (g.prefill_s + (steps > 0 ? steps * g.step_s / p.batch : 0)) / g.shape.dp;
}

Plan make_plan(const PlanProblem& problem, const Machine& machine) {
  const ModelConfig& c = problem.config;
  Plan plan;
  plan.cost = predict_cost(problem);
  plan.weight_bytes = static_cast<double>(plan.cost.bytes_weights.front());
  plan.kv_bytes_token = 2.0 * static_cast<double>(c.layers * c.kv_heads * c.head_dim) *
                        static_cast<double>(size_of(problem.kv_dtype));
  plan.memory_limit = static_cast<std::int64_t>(memory_limit(problem, machine));
  for (const GridShape& shape : grids_of(problem)) {
    GridPlan grid;
    grid.shape = shape;
    fill_memory(problem, machine, grid);
    fill_kv_used(problem, grid);
    fill_prefill(problem, machine, plan.cost, grid);
    fill_decode(problem, machine, plan.cost, grid);
    fill_times(problem, machine, grid);
    plan.grids.push_back(grid);
  }
  std::stable_sort(plan.grids.begin(), plan.grids.end(), better);
  return plan;
}

}  // namespace tessera
