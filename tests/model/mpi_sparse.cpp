// Sparse methods end to end in fp32: on every grid that the number of ranks allows, the text that one rank
// alone makes, the same cache rows kept and read, and an exchange whose counts agree on both sides.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "io/model_config.hpp"
#include "io/rope_config.hpp"
#include "parallel/mpi_session.hpp"
#include "runtime/core/random.hpp"
#include "runtime/model/accounting.hpp"
#include "runtime/model/engine.hpp"
#include "runtime/model/memory_needs.hpp"
#include "runtime/model/transformer.hpp"

using namespace tessera;

namespace {

constexpr std::int64_t kPrompt = 1100;  // several chunks of 128 a rank, none of them whole at the end
constexpr std::int64_t kOutput = 40;

struct SparseCase {
  const char* folder;
  const char* prefill;
  const char* decode;
  std::map<std::string, std::string> settings;
  bool share_group = false;
  std::vector<int> dense_layers = {};
};

const std::vector<SparseCase> kCases = {
    {"qwen2-tied",
     "vertical_slash",
     "snapkv",
     {{"vertical_slash.columns", "40"}, {"vertical_slash.diagonals", "90"}, {"snapkv.tokens", "200"}}},
    {"qwen2-tied", "block_sparse", "quest", {{"block_sparse.blocks", "4"}, {"quest.tokens", "160"}}},
    {"llama3",
     "block_sparse",
     "ada_snapkv",
     {{"block_sparse.blocks", "12"}, {"block_sparse.edge", "16"}, {"ada_snapkv.tokens", "180"}},
     true},
    {"llama3",
     "flexprefill",
     "pyramidkv",
     {{"flexprefill.alpha", "0.5"}, {"flexprefill.floor", "80"}, {"pyramidkv.tokens", "200"}},
     false,
     {0}},
    {"qwen2-untied-yarn",
     "xattention",
     "topp_pages",
     {{"xattention.threshold", "0.6"}, {"topp_pages.coverage", "0.5"}}},
    {"gemma3-text", "streaming", "streaming", {{"streaming.window", "150"}, {"streaming.sinks", "6"}}},
    {"gemma3-text",
     "vertical_slash",
     "quest",
     {{"vertical_slash.columns", "60"},
      {"vertical_slash.diagonals", "70"},
      {"quest.tokens", "128"},
      {"quest.per_query_head", "true"}}},
    {"qwen2-tied", "dense", "snapkv", {{"snapkv.tokens", "150"}}},
};

AttentionPlan plan_of(const SparseCase& c) {
  AttentionPlan plan(MethodSettings(find_method(Phase::kPrefill, c.prefill), c.settings),
                     MethodSettings(find_method(Phase::kDecode, c.decode), c.settings));
  plan.share_group = c.share_group;
  plan.dense_layers = c.dense_layers;
  return plan;
}

class SparseRequests : public RequestSource {
 public:
  SparseRequests(std::int64_t vocab, int count, bool diagnose) {
    for (int i = 0; i < count; ++i) {
      Request request;
      request.id = i;
      request.max_output = kOutput - 7 * i;
      request.diagnose = diagnose;
      for (std::int64_t t = 0; t < kPrompt - 300 * i; ++t) {
        request.tokens.push_back(static_cast<std::int32_t>(
            hash_counter(11, 0, static_cast<std::uint64_t>(t)) % static_cast<std::uint64_t>(vocab)));
      }
      requests_.push_back(std::move(request));
    }
  }
  std::optional<Request> next() override {
    if (next_ == requests_.size()) return std::nullopt;
    return requests_[next_++];
  }
  void finished(Completion completion) override { completions[completion.id] = std::move(completion); }
  bool stop_requested() override { return false; }
  std::map<std::int64_t, Completion> completions;

 private:
  std::vector<Request> requests_;
  std::size_t next_ = 0;
};

// The completions on the leader of each replica; elsewhere none.
std::map<std::int64_t, Completion> run_on(const SparseCase& c, const AttentionPlan& plan,
                                          const GridShape& shape, MpiSession& session, int batch,
                                          bool diagnose = false) {
  const std::string folder = std::string(TESSERA_FIXTURES) + "/" + c.folder;
  const ModelConfig config = read_model_config(folder);
  MemoryMeter meter;
  Grid grid = make_grid(session, shape);
  const Weights weights = load_weights(folder, config, {}, *grid.tp, meter);
  const HeadShare share = head_share(config, grid.place.tp, shape.tp);
  const RunShape run{shape, kPrompt, kPrompt + kOutput, batch, DType::kF32};
  KvCache cache(
      {static_cast<int>(config.layers), static_cast<int>(share.kv_heads), static_cast<int>(config.head_dim),
       DType::kF32, LayerPlans(plan, config).needs_page_bounds()},
      kv_slots_needed(config, run, plan), meter);
  cache.poison_new_slots(true);
  Transformer transformer(config, resolve_rope(config, "auto", kPrompt + kOutput).rope, weights, grid, cache,
                          kPrompt + kOutput, meter, plan);
  Engine engine(transformer, grid, meter, {batch, {}});
  SparseRequests source(config.vocab, 3, diagnose);
  CHECK(engine.run(grid.is_group_leader() ? &source : nullptr));
  CHECK(cache.used_slots() == 0);
  return source.completions;
}

SampleCost cost_of_run(const SparseCase& c, const AttentionPlan& plan, int tp, const Completion& completion) {
  const ModelConfig config = read_model_config(std::string(TESSERA_FIXTURES) + "/" + c.folder);
  CostInput input;
  input.config = &config;
  input.plan = &plan;
  input.tp = tp;
  input.prompt_tokens = completion.input_tokens;
  input.decode_positions = completion.decode_positions;
  input.ranks = completion.ranks;
  return cost_of(input);
}

std::uint64_t sum(const std::vector<std::uint64_t>& values) {
  return std::accumulate(values.begin(), values.end(), std::uint64_t{0});
}

std::vector<GridShape> replicas_of(int ranks) {
  std::vector<GridShape> shapes;
  for (int tp : {1, 2, 4}) {
    for (int sp = 1; sp <= ranks; ++sp) {
      if (tp * sp <= ranks && ranks % (tp * sp) == 0) shapes.push_back({tp, sp, ranks / (tp * sp)});
    }
  }
  return shapes;
}

}  // namespace

TEST_CASE("sparse methods give one rank's text, counts and exchange on every grid, alone and in a batch") {
  MpiSession session = MpiSession::start(detect_launch());
  for (const SparseCase& c : kCases) {
    const AttentionPlan plan = plan_of(c);
    const auto alone = run_on(c, plan, {1, 1, session.size()}, session, 1);
    REQUIRE(alone.size() == 3);
    for (const GridShape& shape : replicas_of(session.size())) {
      for (const int batch : {1, 3}) {
        CAPTURE(c.folder);
        CAPTURE(c.prefill);
        CAPTURE(c.decode);
        CAPTURE(shape.tp);
        CAPTURE(shape.sp);
        CAPTURE(batch);
        for (const auto& [id, completion] : run_on(c, plan, shape, session, batch)) {
          CHECK(completion.output == alone.at(id).output);
          const SampleCost cost = cost_of_run(c, plan, shape.tp, completion);
          const SampleCost expected = cost_of_run(c, plan, 1, alone.at(id));
          CHECK(cost.kv_kept == expected.kv_kept);
          CHECK(cost.pairs_causal == expected.pairs_causal);
          CHECK(sum(cost.pairs_visible) == sum(expected.pairs_visible));
          CHECK(sum(cost.kv_read) == sum(expected.kv_read));
          CHECK(sum(cost.pairs_visible) <= sum(cost.pairs_causal));
          CHECK(sum(cost.pairs_visible) <= sum(cost.pairs_executed));
          std::uint64_t sent = 0, received = 0;
          for (const RankReport& rank : completion.ranks) {
            sent += sum(rank.exchange.units_sent);
            received += sum(rank.exchange.units_received);
            CHECK(sum(rank.exchange.bytes_needed) <= sum(rank.exchange.bytes_selected));
            CHECK(sum(rank.exchange.bytes_selected) <= sum(rank.exchange.bytes_full));
          }
          CHECK(sent == received);
          CHECK((shape.sp == 1) == (received == 0));
        }
      }
    }
  }
}

TEST_CASE("what travels is the same text whether units are selected or everything is gathered") {
  MpiSession session = MpiSession::start(detect_launch());
  const SparseCase& c = kCases[0];
  const GridShape shape{1, session.size(), 1};
  std::map<std::int64_t, Completion> first;
  std::vector<std::uint64_t> bytes;
  for (const ExchangeMode mode : {ExchangeMode::kSelected, ExchangeMode::kGather}) {
    AttentionPlan plan = plan_of(c);
    plan.exchange = mode;
    const auto completions = run_on(c, plan, shape, session, 1);
    if (completions.empty()) continue;
    if (first.empty()) first = completions;
    std::uint64_t selected = 0, needed = 0, full = 0;
    for (const auto& [id, completion] : completions) {
      CHECK(completion.output == first.at(id).output);
      for (const RankReport& rank : completion.ranks) {
        selected += sum(rank.exchange.bytes_selected);
        needed += sum(rank.exchange.bytes_needed);
        full += sum(rank.exchange.bytes_full);
      }
    }
    CHECK(selected == (mode == ExchangeMode::kGather ? full : needed));
    bytes.push_back(selected);
  }
  if (bytes.size() == 2 && shape.sp > 1) CHECK(bytes[0] < bytes[1]);
}

TEST_CASE("full budgets give the dense text, and a diagnosis of nothing lost") {
  MpiSession session = MpiSession::start(detect_launch());
  const GridShape shape{1, session.size(), 1};
  const SparseCase dense{"qwen2-tied", "dense", "dense", {}};
  const auto expected = run_on(dense, plan_of(dense), shape, session, 1);
  const std::map<std::string, std::string> all = {
      {"vertical_slash.columns", "5000"}, {"vertical_slash.diagonals", "5000"},
      {"snapkv.tokens", "5000"},          {"block_sparse.blocks", "5000"},
      {"quest.tokens", "8000"},           {"flexprefill.alpha", "1"},
      {"xattention.threshold", "1"},      {"topp_pages.coverage", "1"},
      {"streaming.window", "5000"},       {"ada_snapkv.tokens", "5000"},
      {"pyramidkv.tokens", "5000"}};
  const std::pair<const char*, const char*> pairs[] = {
      {"vertical_slash", "snapkv"}, {"block_sparse", "quest"},  {"flexprefill", "ada_snapkv"},
      {"xattention", "topp_pages"}, {"streaming", "streaming"}, {"dense", "pyramidkv"}};
  for (const auto& [prefill, decode] : pairs) {
    CAPTURE(prefill);
    CAPTURE(decode);
    const SparseCase c{"qwen2-tied", prefill, decode, all};
    for (const auto& [id, completion] : run_on(c, plan_of(c), shape, session, 1, true)) {
      CHECK(completion.output == expected.at(id).output);
      const SampleCost cost = cost_of_run(c, plan_of(c), 1, completion);
      CHECK(cost.pairs_visible == cost.pairs_causal);
      CHECK(cost.kv_read == cost.kv_dense);
      REQUIRE(!cost.kept_mass.empty());
      for (std::size_t i = 0; i < cost.kept_mass.size(); ++i) {
        if (std::isnan(cost.kept_mass[i])) continue;
        CHECK(cost.kept_mass[i] == doctest::Approx(1).epsilon(1e-4));
        CHECK(cost.output_error[i] < 1e-4);
      }
    }
  }
}

TEST_CASE("a diagnosis shows what small budgets lose") {
  MpiSession session = MpiSession::start(detect_launch());
  for (const SparseCase& c : kCases) {
    CAPTURE(c.prefill);
    CAPTURE(c.decode);
    const AttentionPlan plan = plan_of(c);
    const GridShape shape{1, session.size(), 1};
    for (const auto& [id, completion] : run_on(c, plan, shape, session, 1, true)) {
      if (completion.input_tokens < kPrompt) continue;
      const SampleCost cost = cost_of_run(c, plan, 1, completion);
      const std::size_t half = cost.kept_mass.size() / 2;
      for (const std::size_t phase : {std::size_t{0}, std::size_t{1}}) {
        double least = 2, most_error = -1;
        for (std::size_t i = phase * half; i < (phase + 1) * half; ++i) {
          if (std::isnan(cost.kept_mass[i])) continue;
          CHECK(cost.kept_mass[i] > 0);
          CHECK(cost.kept_mass[i] < 1 + 1e-4);
          least = std::min(least, cost.kept_mass[i]);
          most_error = std::max(most_error, cost.output_error[i]);
        }
        const bool sparse = phase == 0 ? std::string(c.prefill) != "dense" : true;
        CHECK((least < 0.999) == sparse);
        if (sparse) CHECK(most_error > 1e-3);
      }
    }
  }
}
