// Sparse prefill of the model on the GPU: what each layer selects is what the oracle chooses from the very Q
// and K that it had, under the margin rule of DESIGN.md section 7, and lists, pairs and logits follow; beside
// the CPU transformer in fp32.
#include <fmt/format.h>

#include <cstdio>
#include <map>

#include "attention/selection_builder.hpp"
#include "runtime/core/error.hpp"
#include "runtime/model/accounting.hpp"
#include "tests/model/gpu_model.hpp"
#include "tests/reference/naive_select.hpp"

using namespace tessera;
using namespace tessera::testing;

namespace {

using Values = std::map<std::string, std::string>;

// Sums of fp32 arithmetic on the tensor core differ from fp64 by so much of themselves.
constexpr double kSumMargin = 2e-5;
constexpr std::int64_t kSteps = 10;

struct Case {
  const char* model = "qwen2-tied";
  DType dtype = DType::kF16;
  const char* method = "vertical_slash";
  Values values = {};
  std::int64_t prompt = 1500;  // no multiple of a page, block or query block
  bool share = false;
  std::vector<int> dense_layers = {};

  std::string name() const {
    std::string text = fmt::format("{} {} {} S={}{}{}", model, name_of(dtype), method, prompt,
                                   share ? " shared" : "", dense_layers.empty() ? "" : " with dense layers");
    for (const auto& [key, value] : values) text += " " + key + "=" + value;
    return text;
  }
  AttentionPlan plan() const {
    AttentionPlan plan(MethodSettings(find_method(Phase::kPrefill, method), values),
                       MethodSettings(find_method(Phase::kDecode, "dense"), {}));
    plan.share_group = share;
    plan.dense_layers = dense_layers;
    return plan;
  }
};

const Values kLines = {
    {"vertical_slash.columns", "60"}, {"vertical_slash.diagonals", "100"}, {"vertical_slash.window", "200"}};
const Values kShares = {
    {"flexprefill.alpha", "0.3"}, {"flexprefill.floor", "80"}, {"flexprefill.window", "130"}};

const std::vector<Case> kCases = {
    {.values = kLines},
    {.dtype = DType::kBF16, .values = kLines, .prompt = 1089, .share = true},
    {.model = "llama3", .values = kLines, .prompt = 700, .dense_layers = {0}},
    {.model = "gemma3-text", .dtype = DType::kBF16, .values = kLines, .prompt = 900},
    {.values = {{"vertical_slash.window", "256"}}, .prompt = 77},  // shorter than the window and the budgets
    {.values = kLines, .prompt = 1},
    {.values = kLines, .prompt = 64},
    {.values = {{"vertical_slash.columns", "1"}, {"vertical_slash.diagonals", "1"}},
     .prompt = 641},  // forced ones
    {.method = "flexprefill", .values = kShares},
    {.model = "llama3", .dtype = DType::kBF16, .method = "flexprefill", .values = kShares, .share = true},
    {.method = "flexprefill", .values = {{"flexprefill.alpha", "0.95"}}, .prompt = 1300, .dense_layers = {1}},
    {.method = "flexprefill",
     .values = {{"flexprefill.alpha", "0"}, {"flexprefill.floor", "1"}},
     .prompt = 450},
    {.method = "flexprefill", .values = kShares, .prompt = 100},
    {.method = "flexprefill", .values = {{"flexprefill.alpha", "1"}}, .prompt = 333},
};

const std::vector<Case> kWindows = {
    {.method = "streaming", .values = {{"streaming.window", "200"}, {"streaming.sinks", "5"}}},
    {.method = "streaming", .values = {{"streaming.window", "65"}, {"streaming.sinks", "0"}}, .share = true},
    {.model = "llama3", .method = "streaming", .values = {{"streaming.window", "90"}}, .dense_layers = {1}},
    {.method = "streaming", .prompt = 50},
};

// What a listener was told.
struct Told final : SelectionListener {
  struct Layer {
    int layer;
    std::vector<float> q, k;
    PrefillChoice choice;
  };
  void prefill_layer(const PrefillLayer& told) override {
    REQUIRE(told.choice != nullptr);
    CHECK(told.kept == nullptr);
    const std::size_t rows = told.positions.size();
    layers.push_back(
        {told.layer, {told.q, told.q + rows * q_width}, {told.k, told.k + rows * k_width}, *told.choice});
  }
  void decode_layer(const DecodeLayer&) override { FAIL("no decode method selects here"); }

  std::size_t q_width = 0, k_width = 0;
  std::vector<Layer> layers;
};

reference::SelectProblem naive_problem(const Case& c, const ModelConfig& config, const Told::Layer& layer) {
  reference::SelectProblem naive;
  naive.tokens = static_cast<std::size_t>(c.prompt);
  naive.heads = static_cast<std::size_t>(config.heads);
  naive.kv_heads = static_cast<std::size_t>(config.kv_heads);
  naive.dim = static_cast<std::size_t>(config.head_dim);
  naive.scale = config.attention_scale;
  naive.share = c.share;
  naive.q = layer.q;
  naive.k = layer.k;
  return naive;
}

SelectInput select_input(const Case& c, const ModelConfig& config, const Told::Layer& layer) {
  SelectInput input;
  input.tokens = c.prompt;
  input.heads = static_cast<int>(config.heads);
  input.kv_heads = static_cast<int>(config.kv_heads);
  input.head_dim = static_cast<int>(config.head_dim);
  input.q = layer.q.data();
  input.k = layer.k.data();
  input.scale = config.attention_scale;
  input.share_group = c.share;
  return input;
}

// Against fp64 sums of the same Q and K.
void judge_lines(const Case& c, const ModelConfig& config, const Told::Layer& layer) {
  const MethodSettings settings = c.plan().prefill;
  const reference::SelectProblem naive = naive_problem(c, config, layer);
  const std::int64_t window = std::min(settings.whole("window"), c.prompt);
  reference::WindowSums want = reference::window_sums(naive, static_cast<std::size_t>(window));
  const bool threshold = settings.method().budget == BudgetRule::kThreshold;
  const auto judge = [&](std::vector<reference::Scores>& scores, std::int64_t forced, const char* budget,
                         const std::vector<std::vector<std::int32_t>>& chosen) {
    REQUIRE(chosen.size() == scores.size());
    for (std::size_t list = 0; list < scores.size(); ++list) {
      reference::Scores& of_list = scores[list];
      for (std::size_t i = 0; i < of_list.size(); ++i) of_list.slack[i] += kSumMargin * of_list.value[i];
      std::vector<char> must(of_list.size(), 0);
      std::fill_n(must.begin(), std::min<std::int64_t>(forced, c.prompt), 1);
      const auto floor = static_cast<std::size_t>(settings.whole(threshold ? "floor" : budget));
      reference::Count count = reference::exactly(floor);
      if (threshold && settings.real("alpha") >= 1) {
        count = reference::exactly(of_list.size());
      } else if (threshold) {
        const double total = static_cast<double>(window) * static_cast<double>(naive.heads_a_list());
        const double alpha = settings.real("alpha");
        const auto at = [&](double share) { return reference::coverage_count(of_list, total, share, floor); };
        count = {at(alpha - kSumMargin).least, at(alpha).want, at(alpha + kSumMargin).most};
      }
      const reference::Verdict verdict = reference::judge(of_list, must, count, chosen[list]);
      CHECK_MESSAGE(verdict.right, verdict.fault);
    }
  };
  judge(want.vertical, 4, "columns", layer.choice.native.columns);
  judge(want.slash, 64, "diagonals", layer.choice.native.diagonals);
}

struct Equal {
  int lists = 0;
  int equal = 0;
  void count(const std::vector<std::vector<std::int32_t>>& a,
             const std::vector<std::vector<std::int32_t>>& b) {
    REQUIRE(a.size() == b.size());
    for (std::size_t i = 0; i < a.size(); ++i) {
      ++lists;
      equal += a[i] == b[i];
    }
  }
};

// Everything that one prompt shows: choices, lists, and pairs.
void check_selections(const Case& c) {
  CAPTURE(c.name());
  const ModelConfig config = drawn_config(c.model, c.dtype);
  const AttentionPlan plan = c.plan();
  const LayerPlans layers(plan, config);
  const std::vector<std::int32_t> tokens = drawn_tokens(config, c.prompt, 11);
  GpuModel gpu(config, c.prompt, c.prompt + kSteps, 1, plan);
  Told told;
  told.q_width = static_cast<std::size_t>(config.heads * config.head_dim);
  told.k_width = static_cast<std::size_t>(config.kv_heads * config.head_dim);
  gpu.model->set_selection_listener(&told);
  AttentionCounts counts;
  forced_logits(*gpu.model, tokens, c.prompt, c.prompt + kSteps, &counts);

  REQUIRE(static_cast<int>(told.layers.size()) == layers.count());
  const auto heads = static_cast<std::size_t>(config.heads);
  REQUIRE(counts.pairs_visible.size() == heads * static_cast<std::size_t>(config.layers));
  REQUIRE(counts.pairs_executed.size() == counts.pairs_visible.size());
  Equal equal;
  for (const Told::Layer& layer : told.layers) {
    CAPTURE(layer.layer);
    CHECK(layers.sparse_prefill(layer.layer));
    const PrefillSelection& s = layer.choice.selection;
    check_selection(s);
    const NativeDecision& native = layer.choice.native;
    const bool blocks = !native.blocks.empty();
    const bool as_built =
        blocks || s == select_diagonals(c.prompt, c.share, native.columns, native.diagonals);
    CHECK(as_built);
    if (plan.prefill.method().unit == SelectUnit::kColumnsAndDiagonals) judge_lines(c, config, layer);
    const PrefillChoice of_cpu = select_prefill(select_input(c, config, layer), plan.prefill);
    if (blocks) {
      for (std::size_t h = 0; h < heads; ++h) equal.count(native.blocks[h], of_cpu.native.blocks[h]);
    } else {
      equal.count(native.columns, of_cpu.native.columns);
      equal.count(native.diagonals, of_cpu.native.diagonals);
    }
    // The last layer attends to the query block of the last row alone.
    const bool is_last = layer.layer + 1 == config.layers;
    const std::int64_t edge = blocks ? plan.prefill.whole("edge") : kQueryBlockRows;
    const TokenRange executed[] = {{is_last ? (c.prompt - 1) / edge * edge : 0, c.prompt}};
    const PairCounts all = count_pairs(s), some = count_pairs(s, executed);
    const std::size_t heads_a_list = heads / static_cast<std::size_t>(s.heads);
    for (std::size_t h = 0; h < heads; ++h) {
      const std::size_t at = static_cast<std::size_t>(layer.layer) * heads + h;
      CHECK(counts.pairs_visible[at] == all.visible[h / heads_a_list]);
      if (!blocks) CHECK(counts.pairs_executed[at] == some.executed[h / heads_a_list]);
    }
  }
  if (equal.lists > 0) {
    std::printf("%s: %d of %d lists as on the CPU\n", c.name().c_str(), equal.equal, equal.lists);
    CHECK(10 * equal.equal >= 8 * equal.lists);  // near ties may fall otherwise
  }
}

// Tokens that are forced after the prompt see what it left.
void check_logits(const Case& c) {
  CAPTURE(c.name());
  const std::int64_t end = c.prompt + kSteps;
  const ModelConfig config = drawn_config(c.model, c.dtype);
  const auto vocab = static_cast<std::size_t>(config.vocab);
  const std::vector<std::int32_t> tokens = drawn_tokens(config, end, 9);
  CpuModel dense(config, c.prompt, end, 1);
  const std::vector<float> full = forced_logits(dense.transformer, tokens, c.prompt, end);
  const AttentionPlan plan = c.plan();
  CpuModel cpu(config, c.prompt, end, 1, plan);
  GpuModel gpu(config, c.prompt, end, 1, plan);
  AttentionCounts of_cpu, of_gpu;
  const std::vector<float> exact = forced_logits(cpu.transformer, tokens, c.prompt, end, &of_cpu);
  const std::vector<float> got = forced_logits(*gpu.model, tokens, c.prompt, end, &of_gpu);
  REQUIRE(of_gpu.pairs_visible.size() == of_cpu.pairs_visible.size());
  double visible_cpu = 0, visible_gpu = 0;
  for (std::size_t i = 0; i < of_cpu.pairs_visible.size(); ++i) {
    visible_cpu += static_cast<double>(of_cpu.pairs_visible[i]);
    visible_gpu += static_cast<double>(of_gpu.pairs_visible[i]);
  }
  CHECK(std::abs(visible_gpu - visible_cpu) <= 0.02 * visible_cpu);
  double largest = 0;
  for (const float value : full) largest = std::max(largest, std::abs(double{value}));
  const double error = median_row_error(got, exact, vocab);
  const double sparsity = median_row_error(full, exact, vocab);
  std::printf("%s: error %.2e, where sparsity changes %.2e; pairs %.5f of the CPU's\n", c.name().c_str(),
              error, sparsity, visible_gpu / visible_cpu);
  CHECK(error <= (c.dtype == DType::kBF16 ? 0.03 : 0.01) * largest + 0.25 * sparsity);
  CHECK(gpu.model->cache().tables().used_slots() == 0);
  const DeviceNeeds needs = device_bytes_needed(config, {{1, 1, 1}, c.prompt, end, 1, config.dtype}, plan);
  CHECK(gpu.meter.peak(MemoryKind::kWorkspace) <= needs.workspace);
}

}  // namespace

TEST_CASE("sparse prompts: layers select as the oracle does, and pairs are counted as on the CPU") {
  for (const Case& c : kCases) check_selections(c);
  for (const Case& c : kWindows) check_selections(c);
  for (const char* edge : {"64", "128"}) {
    check_selections(
        {.method = "block_sparse", .values = {{"block_sparse.edge", edge}, {"block_sparse.blocks", "5"}}});
  }
}

TEST_CASE("sparse prompts: logits are nearly those of the CPU") {
  for (const Case& c : kCases) check_logits(c);
  for (const Case& c : kWindows) check_logits(c);
}

TEST_CASE("sparse prompts: full budgets give dense logits") {
  const ModelConfig config = drawn_config("qwen2-tied", DType::kF16);
  constexpr std::int64_t kPrompt = 700;
  const std::vector<std::int32_t> tokens = drawn_tokens(config, kPrompt + kSteps, 12);
  GpuModel dense(config, kPrompt, kPrompt + kSteps, 1);
  const std::vector<float> want = forced_logits(*dense.model, tokens, kPrompt, kPrompt + kSteps);
  double largest = 0;
  for (const float value : want) largest = std::max(largest, std::abs(double{value}));
  for (const Case& c :
       {Case{.values = {{"vertical_slash.columns", "5000"}, {"vertical_slash.diagonals", "1"}}},
        Case{.values = {{"vertical_slash.columns", "1"}, {"vertical_slash.diagonals", "5000"}}},
        Case{.method = "flexprefill", .values = {{"flexprefill.alpha", "1"}}},
        Case{.method = "streaming", .values = {{"streaming.window", "5000"}}}}) {
    CAPTURE(c.name());
    GpuModel gpu(config, kPrompt, kPrompt + kSteps, 1, c.plan());
    const std::vector<float> got = forced_logits(*gpu.model, tokens, kPrompt, kPrompt + kSteps);
    REQUIRE(got.size() == want.size());
    CHECK(median_row_error(got, want, static_cast<std::size_t>(config.vocab)) <= 0.005 * largest);
  }
}

TEST_CASE("sparse prompts: a ladder of budgets counts what each would show") {
  for (const bool share : {false, true}) {
    for (const char* method : {"vertical_slash", "flexprefill"}) {
      Case c{.method = method, .values = kLines, .prompt = 1100, .share = share, .dense_layers = {0}};
      if (std::string(method) == "flexprefill") c.values = kShares;
      CAPTURE(c.name());
      const ModelConfig config = drawn_config(c.model, c.dtype);
      const AttentionPlan plan = c.plan();
      const LayerPlans layers(plan, config);
      const SequencePartition partition(c.prompt, 1);
      GpuModel gpu(config, c.prompt, c.prompt + 1, 1, plan);
      CpuModel cpu(config, c.prompt, c.prompt + 1, 1, plan);
      std::vector<MethodSettings> ladder;
      for (const double at : {0.0, 0.3, 0.6, 1.0}) {
        MethodSettings rung = plan.prefill;
        if (std::string(method) == "flexprefill") {
          rung.set("alpha", at);
        } else {
          rung.set("columns", 64 + std::floor(at * 1500));
          rung.set("diagonals", 64 + std::floor(at * 500));
        }
        ladder.push_back(rung);
      }
      ladder.push_back(plan.prefill);
      std::vector<PairTotals> of_gpu, of_cpu;
      const auto climb = [&](LanguageModel& model, std::vector<PairTotals>& totals) {
        std::vector<float> logits;
        for (const std::uint64_t seed : {31, 32}) {  // two prompts add up
          const std::vector<std::int32_t> tokens = drawn_tokens(config, c.prompt, seed);
          const int sequence = model.add_sequence(c.prompt + 1);
          model.set_ladder(ladder, &totals);
          model.prefill({sequence, &partition, tokens, {}}, logits);
          model.set_ladder({}, nullptr);
          model.remove_sequence(sequence);
        }
      };
      climb(*gpu.model, of_gpu);
      climb(cpu.transformer, of_cpu);
      REQUIRE(of_gpu.size() == ladder.size());
      for (std::size_t i = 0; i < ladder.size(); ++i) {
        CAPTURE(i);
        CHECK(of_gpu[i].causal == of_cpu[i].causal);
        CHECK(of_gpu[i].causal ==
              2 * causal_pairs(c.prompt, 0) * static_cast<std::uint64_t>(config.heads * layers.count()));
        const double got = static_cast<double>(of_gpu[i].visible),
                     want = static_cast<double>(of_cpu[i].visible);
        CHECK(std::abs(got - want) <= 0.01 * want);
      }
      // The rung that is the plan's own counts what the prompt itself counts, to the pair.
      AttentionCounts counts;
      std::vector<PairTotals> own;
      const std::vector<std::int32_t> tokens = drawn_tokens(config, c.prompt, 33);
      gpu.model->set_ladder({&plan.prefill, 1}, &own);
      forced_logits(*gpu.model, tokens, c.prompt, c.prompt + 1, &counts);
      gpu.model->set_ladder({}, nullptr);
      std::uint64_t visible = 0;
      const auto heads = static_cast<std::size_t>(config.heads);
      for (std::size_t i = heads; i < counts.pairs_visible.size(); ++i) visible += counts.pairs_visible[i];
      CHECK(own.front().visible == visible);
      CHECK(
          gpu.meter.peak(MemoryKind::kWorkspace) <=
          device_bytes_needed(config, {{1, 1, 1}, c.prompt, c.prompt + 1, 1, config.dtype}, plan).workspace);
    }
  }
}

TEST_CASE("sparse prompts: compared with dense attention as on the CPU") {
  for (const Case& c :
       {Case{.values = kLines}, Case{.dtype = DType::kBF16, .method = "flexprefill", .values = kShares},
        Case{.method = "block_sparse",
        .values = {{"block_sparse.edge", "64"}, {"block_sparse.blocks", "5"}},
        .dense_layers = {1}},
        Case{.method = "streaming", .values = {{"streaming.window", "200"}}}}) {
    CAPTURE(c.name());
    const ModelConfig config = drawn_config(c.model, c.dtype);
    const AttentionPlan plan = c.plan();
    const std::vector<std::int32_t> tokens = drawn_tokens(config, c.prompt, 21);
    const SequencePartition partition(c.prompt, 1);
    const std::int64_t last = c.prompt - 1;
    const auto diagnose = [&](LanguageModel& model) {
      DiagnosisSums sums;
      std::vector<float> logits;
      std::vector<std::int32_t> best;
      const int sequence = model.add_sequence(c.prompt + 1);
      PrefillRequest request{sequence, &partition, tokens, {&last, 1}};
      request.diagnosis = &sums;
      model.prefill(request, logits);
      model.greedy_tokens(best);
      model.remove_sequence(sequence);
      return sums;
    };
    GpuModel gpu(config, c.prompt, c.prompt + 1, 1, plan);
    CpuModel cpu(config, c.prompt, c.prompt + 1, 1, plan);
    const DiagnosisSums got = diagnose(*gpu.model), want = diagnose(cpu.transformer);
    REQUIRE(got.rows.size() == want.rows.size());
    double worst_mass = 0, worst_error = 0;
    for (std::size_t i = 0; i < want.rows.size(); ++i) {
      CHECK(got.rows[i] == want.rows[i]);
      if (want.rows[i] == 0) continue;
      worst_mass = std::max(worst_mass, std::abs(got.kept_mass[i] - want.kept_mass[i]) / want.rows[i]);
      worst_error = std::max(worst_error, std::abs(std::sqrt(got.error[i] / got.norm[i]) -
                                                   std::sqrt(want.error[i] / want.norm[i])));
    }
    std::printf("%s: kept mass differs by %.1e, error by %.1e at most\n", c.name().c_str(), worst_mass,
                worst_error);
    CHECK(worst_mass <= 0.02);
    CHECK(worst_error <= 0.03);
  }
}

namespace {

// Pages of the first layers' steps.
struct PagesTold final : SelectionListener {
  void prefill_layer(const PrefillLayer&) override { FAIL("no prefill method selects here"); }
  void decode_layer(const DecodeLayer& told) override {
    CHECK(told.position == kPosition);
    for (std::size_t i = 0; i < q_width; ++i) finite = finite && std::isfinite(told.q[i]);
    layers[told.layer] = *told.pages;
  }
  static constexpr std::int32_t kPosition = 700;
  std::size_t q_width = 0;
  bool finite = true;
  std::map<int, HeadLists> layers;
};

}  // namespace

TEST_CASE("sparse prompts: what decoding sees compared with dense attention, and pages that are told") {
  constexpr std::int64_t kPrompt = PagesTold::kPosition;
  const std::pair<const char*, Values> methods[] = {
      {"streaming", {{"streaming.window", "200"}, {"streaming.sinks", "4"}}},
      {"snapkv", {{"snapkv.tokens", "250"}}},
      {"ada_snapkv", {{"ada_snapkv.tokens", "250"}}},
      {"pyramidkv", {{"pyramidkv.tokens", "250"}}},
      {"quest", {{"quest.tokens", "160"}}},
      {"quest", {{"quest.tokens", "160"}, {"quest.per_query_head", "true"}}},
  };
  for (const char* name : {"qwen2-tied", "gemma3-text"}) {
    for (const auto& [method, values] : methods) {
      CAPTURE(name);
      CAPTURE(method);
      const ModelConfig config = drawn_config(name, DType::kF16);
      const AttentionPlan plan(MethodSettings(find_method(Phase::kPrefill, "dense"), {}),
                               MethodSettings(find_method(Phase::kDecode, method), values));
      const bool reads_pages = plan.decode.method().unit == SelectUnit::kPages;
      const std::vector<std::int32_t> tokens = drawn_tokens(config, kPrompt, 22);
      const SequencePartition partition(kPrompt, 1);
      PagesTold of_gpu, of_cpu;
      of_gpu.q_width = of_cpu.q_width = static_cast<std::size_t>(config.heads * config.head_dim);
      const auto diagnose = [&](LanguageModel& model, PagesTold& told) {
        if (reads_pages) model.set_selection_listener(&told);
        DiagnosisSums sums;
        const std::int64_t last = kPrompt - 1;
        std::vector<float> logits;
        std::vector<std::int32_t> best;
        const int sequence = model.add_sequence(kPrompt + 2);
        PrefillRequest request{sequence, &partition, tokens, {&last, 1}};
        request.diagnosis = &sums;
        model.prefill(request, logits);
        model.greedy_tokens(best);
        DecodeRow row{sequence, &partition, PagesTold::kPosition, 7, nullptr, &sums};
        model.decode({&row, 1}, logits);
        model.greedy_tokens(best);
        model.remove_sequence(sequence);
        return sums;
      };
      GpuModel gpu(config, kPrompt, kPrompt + 2, 1, plan);
      CpuModel cpu(config, kPrompt, kPrompt + 2, 1, plan);
      const DiagnosisSums got = diagnose(*gpu.model, of_gpu), want = diagnose(cpu.transformer, of_cpu);
      REQUIRE(got.rows.size() == want.rows.size());
      double worst_mass = 0, worst_error = 0;
      for (std::size_t i = 0; i < want.rows.size(); ++i) {
        CHECK(got.rows[i] == want.rows[i]);
        if (want.rows[i] == 0) continue;
        worst_mass = std::max(worst_mass, std::abs(got.kept_mass[i] - want.kept_mass[i]));
        worst_error = std::max(worst_error, std::abs(std::sqrt(got.error[i] / got.norm[i]) -
                                                     std::sqrt(want.error[i] / want.norm[i])));
      }
      std::printf("%s %s: kept mass differs by %.1e, error by %.1e at most\n", name, method, worst_mass,
                  worst_error);
      CHECK(worst_mass <= 0.05);
      CHECK(worst_error <= 0.1);
      CHECK(of_gpu.finite);
      REQUIRE(of_gpu.layers.size() == of_cpu.layers.size());
      CHECK(of_gpu.layers.empty() == !reads_pages);
      for (const auto& [layer, pages] : of_cpu.layers) {
        CAPTURE(layer);
        const HeadLists& others = of_gpu.layers.at(layer);
        CHECK(others.heads == pages.heads);
        CHECK(others.begin == pages.begin);
        int same = 0;
        for (std::size_t i = 0; i < pages.values.size(); ++i) same += others.values[i] == pages.values[i];
        CHECK(10 * same >= 8 * static_cast<int>(pages.values.size()));  // near ties may fall otherwise
      }
    }
  }
}
