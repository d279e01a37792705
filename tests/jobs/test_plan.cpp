// The plan as a function: its figures against those worked out here from the published shapes, and against
// what DESIGN.md section 8 measured.
#include "jobs/plan/plan.hpp"
#include "jobs/plan/plan_beside.hpp"
#include "jobs/plan/plan_parts.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <set>

#include "jobs/plan/plan_check.hpp"
#include "jobs/plan/plan_sparsity.hpp"
#include "tests/jobs/plan_models.hpp"

using namespace tessera;
using namespace tessera::test;

namespace {

constexpr std::int64_t k128K = 131072;

Machine h200() {
  MachineOptions options;
  options.machine = "h200";
  Machine machine = make_machine(options);
  machine.decodes_by_heads = true;
  return machine;
}

PlanProblem large(int ranks = 1) {
  return problem_of(config_of(published("Qwen2.5-72B")), k128K, ranks);
}

PlanProblem sparse(PlanProblem p, const char* prefill, const char* decode, double sparsity) {
  const bool dense_prefill = std::string(prefill) == "dense", dense_decode = std::string(decode) == "dense";
  p.attention = AttentionPlan(MethodSettings(find_method(Phase::kPrefill, prefill), {}),
                              MethodSettings(find_method(Phase::kDecode, decode), {}));
  p.prefill = {dense_prefill ? 0 : sparsity, SparsitySource::kTarget};
  p.decode = {dense_decode ? 0 : sparsity, SparsitySource::kTarget};
  return p;
}

doctest::Approx near(double value, double share = 0.01) {
  return doctest::Approx(value).epsilon(share).scale(0);  // relative alone: seconds and shares are below 1
}

}  // namespace

TEST_CASE("plan: weights and keys of the models are those that are published") {
  for (const PublishedModel& model : published_models()) {
    CAPTURE(model.name);
    const ModelConfig config = config_of(model);
    CHECK(config.parameter_count() == model.parameters);
    const Plan plan = make_plan(problem_of(config, 4096), h200());
    CHECK(plan.weight_bytes == 2.0 * static_cast<double>(model.parameters));
    CHECK(plan.kv_bytes_token == static_cast<double>(model.kv_bytes_token));
    REQUIRE(plan.grids.size() == 1);
    CHECK(plan.grids.front().weights == plan.weight_bytes);
    // Window layers keep 1,024 tokens and their block; the others all 4,096 and 1,023 of the answer.
    double tokens = 0;
    for (const std::int32_t window : config.layer_window) tokens += window > 0 ? 1024 : 5119;
    tokens /= static_cast<double>(config.layers);
    const double kept = tokens * static_cast<double>(model.kv_bytes_token);
    CHECK(plan.grids.front().kv_used >= kept);
    CHECK(plan.grids.front().kv_used <= 1.06 * kept + 64 * 4096);
    CHECK(plan.grids.front().kv >= plan.grids.front().kv_used);
  }
}

TEST_CASE("plan: 72B at 128K has the floors of DESIGN.md section 8") {
  const Plan plan = make_plan(large(), h200());
  CHECK(plan.weight_bytes == near(145e9));
  CHECK(k128K * plan.kv_bytes_token == near(43e9));
  CHECK(static_cast<double>(plan.cost.flops_linear[0]) == near(18.4e15));
  CHECK(static_cast<double>(plan.cost.flops_attention[0]) == near(22.5e15));
  // The study's formula counts the whole square: FACTS.md, written out.
  const double L = 131072, d = 8192, h = 64, dh = 128, kv = 8, mlp = 29568, V = 152064, N = 80;
  const double paper = 2 * L * d + N * (2 * L * d * (2 * d + 2 * dh * kv) + h * L * L * (4 * dh + 3)) +
                       2 * N * L * mlp * (3 * d + 1) + 2 * L * d * V;
  CHECK(static_cast<double>(plan.cost.flops_paper[0]) == near(paper, 1e-9));

  const GridPlan& grid = plan.grids.front();
  // The residual stream four times in and out, queries, keys and values once, the MLP's three rows.
  const double passes = 2 * L * N * (8 * d + 2 * (h + 2 * kv) * dh + 3 * mlp);
  CHECK(grid.bytes_passes == near(passes, 1e-9));
  CHECK(grid.prefill_s == near(18.4e15 / 671e12 + passes / 4.47e12 + 22.5e15 / 690e12));
  // All weights but the rows of the embedding table, and the cache at its mean length, at the read limit.
  const double read = 145.41e9 - 2 * V * d + 327680 * (L + 512);
  CHECK(grid.step_s == near(read / 4.47e12 + N * 25e-6));
  CHECK(grid.sample_s == near(grid.prefill_s + 1023 * grid.step_s, 1e-9));
  CHECK(!grid.fits());
}

// Medians of `eval --device cuda` on an H100, prompts of 32,768 tokens, batch 1.
TEST_CASE("plan: three shapes take what one GPU was seen to take, within 15 %") {
  struct Seen {
    const char* model;
    double prefill_s, step_s;
  };
  MachineOptions h100;
  h100.machine = "h100";
  for (const Seen& seen : {Seen{"Qwen2.5-7B", 0.9820, 5.960e-3}, Seen{"Qwen2.5-3B", 0.5311, 3.068e-3},
                           Seen{"Qwen2.5-0.5B", 0.1339, 0.936e-3}}) {
    CAPTURE(seen.model);
    const PlanProblem problem = problem_of(config_of(published(seen.model)), 32768);
    const GridPlan grid = make_plan(problem, make_machine(h100)).grids.front();
    CHECK(grid.prefill_s == near(seen.prefill_s, 0.15));
    CHECK(grid.step_s == near(seen.step_s, 0.15));
  }
}

TEST_CASE("plan: traffic of 72B at 128K over NVLink takes what was measured") {
  const Plan plan = make_plan(large(8), h200());
  const GridPlan& split = grid_of(plan, 2, 4);
  CHECK(grid_of(plan, 8, 1).all_reduce_s == near(1.6, 0.02));
  CHECK(split.all_reduce_s == near(0.23, 0.02));
  CHECK(split.bytes_full / 375e9 == near(0.043, 0.02));
  // 4 ranks: the one with the last chunk sees everything.
  CHECK(split.bytes_needed == split.bytes_full);
  CHECK(split.bytes_full == near(0.75 * 42.95e9 / 2));
  // From tokens to heads: 3/4 of the eighth that a rank decodes with.
  CHECK(split.bytes_reshard == near(0.75 * 42.95e9 / 8));
}

TEST_CASE("plan: all grids that divide ranks and model, those that fit first, the fastest of them first") {
  const Plan plan = make_plan(large(8), h200());
  std::set<std::pair<int, int>> shapes;
  for (const GridPlan& grid : plan.grids) {
    CHECK(grid.shape.ranks() == 8);
    shapes.insert({grid.shape.tp, grid.shape.sp});
  }
  CHECK(shapes.size() == 10);  // tp × sp in {1, 2, 4, 8}, at most 8
  for (std::size_t i = 1; i < plan.grids.size(); ++i) {
    const GridPlan &a = plan.grids[i - 1], &b = plan.grids[i];
    CHECK(a.fits() >= b.fits());
    if (a.fits() && b.fits()) CHECK(a.sample_s <= b.sample_s);
  }
  PlanProblem fixed = large(8);
  fixed.tp = 4;
  CHECK(make_plan(fixed, h200()).grids.size() == 2);
  fixed.dp = 2;
  REQUIRE(make_plan(fixed, h200()).grids.size() == 1);
  CHECK(make_plan(fixed, h200()).grids.front().shape.sp == 1);
  // 28 heads and 4 KV heads: 7 divides the one and not the other, 8 neither.
  for (const GridPlan& grid :
       make_plan(problem_of(config_of(published("Qwen2.5-7B")), 4096, 56), h200()).grids)
    CHECK((grid.shape.tp == 1 || grid.shape.tp == 2 || grid.shape.tp == 4));
}

TEST_CASE("plan: KV heads are replicated where tp exceeds them") {
  const ModelConfig config = config_of(published("Llama-3.1-8B"));
  Plan plan = make_plan(problem_of(config, 32768, 16), h200());
  const GridPlan &wide = grid_of(plan, 16, 1), &eight = grid_of(plan, 8, 1), &four = grid_of(plan, 4, 1);
  CHECK(wide.kv == eight.kv);
  CHECK(four.kv == 2 * eight.kv);
  const double E = 4096, F = 14336, D = 128, V = 128256, L = 32;
  const double layer = 2 * E * E / 16 + 2 * E * D + 3 * E * F / 16 + 2 * E;
  CHECK(wide.weights == near(2 * (L * layer + 2 * V * E / 16 + E), 1e-9));
  // Each reads its one head whole, as eval decodes today where nothing is resharded.
  CHECK(wide.step_kv == eight.step_kv);
  CHECK(wide.decode.kv_heads == 8);
}

TEST_CASE("plan: decoding is tp·sp wide, and beyond the KV heads split by tokens") {
  const ModelConfig config = config_of(published("Llama-3.1-8B"));  // 32 heads, 8 KV heads
  const Plan plan = make_plan(problem_of(config, 32768, 16), h200());
  const double kv_step = 131072.0 * (32768 + 512);
  for (const auto& [tp, sp] : {std::pair{2, 4}, {1, 8}, {4, 2}}) {
    const GridPlan& grid = grid_of(plan, tp, sp);
    CHECK(grid.decode.weights == 8);
    CHECK(grid.decode.kv_heads == 8);
    CHECK(grid.decode.kv_tokens == 1);
    CHECK(grid.step_kv == near(kv_step / 8));
  }
  const GridPlan& beyond = grid_of(plan, 4, 4);
  CHECK(beyond.decode.weights == 16);
  CHECK(beyond.decode.kv_heads == 8);
  CHECK(beyond.decode.kv_tokens == 2);
  CHECK(beyond.step_kv == near(kv_step / 16));

  Machine cpu = h200();
  cpu.decodes_by_heads = false;
  const Plan as_prefill = make_plan(problem_of(config, 32768, 16), cpu);
  const GridPlan& same = grid_of(as_prefill, 4, 4);
  CHECK(same.decode.weights == 4);
  CHECK(same.decode.kv_tokens == 4);
  CHECK(same.step_kv == near(kv_step / 16));
  // Sixteen ranks hold each of the 8 KV heads twice: half of their k and v matrices is a copy.
  CHECK(same.step_weights == near(4 * (beyond.step_weights - 2 * 32 * 2 * 4096.0 * 64), 0.001));
  CHECK(same.bytes_reshard == 0);
}

TEST_CASE("plan: a batch shares the weights of a step") {
  PlanProblem one = large(), eight = large();
  eight.batch = 8;
  const Plan a = make_plan(one, h200()), b = make_plan(eight, h200());
  const GridPlan &single = a.grids.front(), &batch = b.grids.front();
  CHECK(batch.step_weights == single.step_weights);
  CHECK(batch.step_kv == near(8 * single.step_kv, 1e-9));
  CHECK(batch.kv == near(8 * single.kv, 0.001));
  CHECK(b.cost.bytes_weights[1] == a.cost.bytes_weights[1] / 8);
  CHECK(batch.sample_s < single.sample_s);
}

TEST_CASE("plan: what a method leaves out is left out of its layers alone") {
  const Plan dense = make_plan(large(), h200());
  const Plan plan = make_plan(sparse(large(), "block_sparse", "snapkv", 0.9), h200());
  CHECK(static_cast<double>(plan.cost.flops_attention[0]) ==
        near(0.1 * static_cast<double>(dense.cost.flops_attention[0]), 1e-6));
  CHECK(static_cast<double>(plan.cost.bytes_kv[1]) ==
        near(0.1 * static_cast<double>(dense.cost.bytes_kv[1]), 1e-6));
  CHECK(plan.cost.flops_linear == dense.cost.flops_linear);
  CHECK(plan.cost.flops_estimate[0] > 0);
  // 1,024 tokens a head and the answer, instead of 131,072 and the answer.
  CHECK(plan.grids.front().kv_used < 0.05 * dense.grids.front().kv_used);

  PlanProblem half = sparse(large(), "block_sparse", "dense", 0.9);
  for (int layer = 0; layer < 40; ++layer) half.attention.dense_layers.push_back(layer);
  CHECK(static_cast<double>(predict_cost(half).flops_attention[0]) ==
        near(0.55 * static_cast<double>(dense.cost.flops_attention[0]), 1e-6));
  // Quest reads both bounds of every page: 1/16 of keys and values.
  const SampleCost quest = predict_cost(sparse(large(), "dense", "quest", 0.9));
  CHECK(static_cast<double>(quest.bytes_estimator[1]) ==
        near(static_cast<double>(dense.cost.bytes_kv[1]) / 16, 0.001));
}

TEST_CASE("plan: exchange under streaming is what windows and sinks show") {
  PlanProblem p = problem_of(config_of(published("Llama-3.1-8B")), 1024, 2);
  p = sparse(p, "streaming", "dense", 0.5);
  p.attention.prefill.set("window", 64);
  // Rank 0 owns 0…255 and 768…1023, rank 1 the rest. A window of 64 rounded out to pages reaches 78 back:
  // rank 1 needs blocks 2 and 3 and the page of the sinks, rank 0 blocks 10 and 11.
  const double page = 2 * 16 * 128 * 2 * 8;  // K and V, bf16, 8 KV heads
  CHECK(grid_of(make_plan(p, h200()), 1, 2).bytes_needed == 32 * 9 * page);
  CHECK(grid_of(make_plan(p, h200()), 1, 2).bytes_full == 32 * 32 * page);
  p.attention.exchange = ExchangeMode::kGather;
  CHECK(grid_of(make_plan(p, h200()), 1, 2).bytes_exchanged == 32 * 32 * page);
}

TEST_CASE("plan: independent choices of many rows need what dense attention needs") {
  const Plan dense = make_plan(large(4), h200());
  const Plan plan = make_plan(sparse(large(4), "block_sparse", "dense", 0.9), h200());
  CHECK(grid_of(plan, 1, 4).bytes_needed == near(grid_of(dense, 1, 4).bytes_needed, 1e-6));
}

TEST_CASE("plan: the least ranks and the longest prompt that fit") {
  const Machine machine = h200();
  const PlanProblem p = large();
  const auto least = least_grid(p, machine);
  REQUIRE(least);
  PlanProblem on_least = p;
  on_least.ranks = least->ranks();
  CHECK(make_plan(on_least, machine).any_fits());
  on_least.ranks = least->ranks() - 1;
  CHECK(!make_plan(on_least, machine).any_fits());

  PlanProblem small = problem_of(config_of(published("Llama-3.1-8B")), 1 << 20);
  small.output_tokens = 16;
  Machine card = machine;
  card.memory = 40e9;
  const std::int64_t longest = longest_length(small, card);
  CHECK(longest > 65536);  // 24 GB for keys of 131,072 bytes and activations
  CHECK(longest < (1 << 20));
  PlanProblem fitting = small;
  fitting.length = longest;
  CHECK(make_plan(fitting, card).any_fits());
  ++fitting.length;
  CHECK(!make_plan(fitting, card).any_fits());
  card.memory = 10e9;  // less than the weights
  CHECK(longest_length(small, card) == 0);
  CHECK(!least_grid(small, card, 1));
}

TEST_CASE("plan: without rates there are no times, and without a limit everything fits") {
  const Plan plan = make_plan(large(8), Machine{});
  for (const GridPlan& grid : plan.grids) {
    CHECK(grid.fits());
    CHECK(std::isnan(grid.prefill_s));
    CHECK(std::isnan(grid.step_s));
  }
  for (std::size_t i = 1; i < plan.grids.size(); ++i)
    CHECK(plan.grids[i - 1].memory() <= plan.grids[i].memory());
}

TEST_CASE("plan: an answer of one token has no steps, and one is shown") {
  PlanProblem p = large();
  p.output_tokens = 1;
  const Plan plan = make_plan(p, h200());
  CHECK(plan.grids.front().sample_s == plan.grids.front().prefill_s);
  CHECK(plan.grids.front().step_s > 0);
}

TEST_CASE("plan: random offsets show what DESIGN.md section 8 measured") {
  for (const auto& [n, density] : {std::pair{256.0, .107}, {512.0, .240}, {1024.0, .440}}) {
    CAPTURE(n);
    CHECK(1 - random_offsets_sparsity(n, n, k128K) == near(density, 0.05));
  }
}

TEST_CASE("plan: how the sparsity of a phase is known") {
  const MethodSettings vertical(find_method(Phase::kPrefill, "vertical_slash"), {});
  const MethodSettings pages(find_method(Phase::kDecode, "topp_pages"), {});
  PhaseBudget budget;
  CHECK(phase_sparsity(vertical, budget, k128K).source == SparsitySource::kEstimate);
  CHECK(phase_sparsity(pages, budget, k128K).source == SparsitySource::kUnknown);
  CHECK(phase_sparsity(pages, budget, k128K).value == 0);
  budget.study_compression = 10;
  CHECK(phase_sparsity(vertical, budget, k128K).value == near(0.9, 1e-9));
  budget.target = 0.8;
  budget.pending = true;
  CHECK(phase_sparsity(vertical, budget, k128K).value == 0.8);
  CHECK(sparsity_note(vertical, budget, phase_sparsity(vertical, budget, k128K)).find("calibration") !=
        std::string::npos);
  budget.expected_sparsity = 0.81;
  CHECK(phase_sparsity(vertical, budget, k128K).source == SparsitySource::kExact);
}

TEST_CASE("plan: beside what a run measured, by medians, and times only where rates are known") {
  GridPlan plan;
  plan.weights = 2e9;
  plan.kv_used = 1e6;
  plan.workspace = 4e6;
  RunMeasures measured;
  CHECK(beside_text(plan, h200(), measured) == "");
  for (const double prefill : {0.9, 0.2, 0.3}) {
    Completion completion;
    completion.prefill_s = prefill;
    completion.per_token_s = prefill > 0.5 ? std::nan("") : prefill / 100;
    completion.ranks.resize(2);
    completion.ranks[1].peak_weights = 2'100'000'000;
    completion.ranks[0].peak_kv = 990'000;
    completion.ranks[0].peak_workspace = 4'000'000;
    measured.add(completion);
  }
  const std::string memory =
      "plan: memory of a rank: weights 2.00 GB, measured 2.10 GB (+5.0 %); KV 1.0 MB, measured 1.0 MB (-1.0 "
      "%); "
      "workspace 4.0 MB, measured 4.0 MB (+0.0 %)\n";
  CHECK(beside_text(plan, h200(), measured) == memory);
  plan.prefill_s = 1.2;
  plan.step_s = 0.002;
  CHECK(beside_text(plan, h200(), measured) ==
        memory +
            "plan (h200): prefill 1.200 s, measured 300.000 ms (-75.0 %); a token 2.000 ms, measured "
            "2.500 ms (+25.0 %)\n");
}

TEST_CASE("plan: on one GPU memory is what the CUDA backend says it takes") {
  PlanProblem problem = large();
  problem.on_gpu = true;
  problem.tp = problem.sp = problem.dp = 1;
  const Plan plan = make_plan(problem, h200());
  const DeviceNeeds needs =
      device_bytes_needed(problem.config, run_of(problem, {1, 1, 1}), problem.attention);
  REQUIRE(plan.grids.size() == 1);
  CHECK(plan.grids.front().memory() == static_cast<double>(needs.total()));
  CHECK(plan.grids.front().kv_used == static_cast<double>(needs.kv));
}

TEST_CASE("plan: bad files come before bad options, and those before places") {
  CHECK(code_of({}) == ExitCode::kDone);
  CHECK(code_of({{ExitCode::kResource, ""}, {ExitCode::kUsage, ""}}) == ExitCode::kUsage);
  CHECK(code_of({{ExitCode::kUsage, ""}, {ExitCode::kInput, ""}}) == ExitCode::kInput);
}
