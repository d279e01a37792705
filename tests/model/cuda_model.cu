// The model on the GPU against the CPU transformer in fp32: logits within twice the error that low precision
// has by itself, steps in a graph bitwise those launched one by one, batches and sparse methods.
#include <doctest/doctest.h>

#include <cstdio>
#include <map>

#include "runtime/core/error.hpp"
#include "runtime/model/engine.hpp"
#include "tests/model/gpu_model.hpp"

using namespace tessera;
using namespace tessera::testing;
using cuda_test::Gpu;

namespace {

constexpr std::int64_t kPrompt = 300;  // no multiple of a page, block or query block
constexpr std::int64_t kSteps = 40;    // over several blocks
constexpr std::int64_t kTotal = kPrompt + kSteps;

struct Settings {
  const char* decode = "dense";
  std::map<std::string, std::string> values = {};
};

AttentionPlan plan_of(const Settings& settings) {
  return AttentionPlan(MethodSettings(find_method(Phase::kPrefill, "dense"), {}),
                       MethodSettings(find_method(Phase::kDecode, settings.decode), settings.values));
}

// What rounding to `dtype` costs by itself on rows prompt − 1 … of these tokens.
double own_error(CpuModel& cpu, const std::vector<std::int32_t>& tokens, std::int64_t prompt,
                 const std::vector<float>& exact) {
  const reference::NaiveModel model = naive_model(cpu);
  const DType dtype = cpu.config.dtype;
  const reference::NaiveTransformer naive(model, [dtype](float value) { return rounded(value, dtype); });
  const std::vector<float> logits = naive.logits(tokens);
  const std::size_t skipped = static_cast<std::size_t>((prompt - 1) * cpu.config.vocab);
  REQUIRE(logits.size() == skipped + exact.size());
  return largest_difference(logits.data() + skipped, exact.data(), exact.size());
}

// Where the exact best leads by more than `margin`, it must be the best of `got`, too. Returns how many rows.
int compare_best(const std::vector<float>& got, const std::vector<float>& exact, std::size_t vocab,
                 double margin) {
  int compared = 0;
  for (std::size_t row = 0; row < exact.size() / vocab; ++row) {
    const float* x = exact.data() + row * vocab;
    const float* y = got.data() + row * vocab;
    const std::size_t best = static_cast<std::size_t>(std::max_element(x, x + vocab) - x);
    float second = -INFINITY;
    for (std::size_t i = 0; i < vocab; ++i) {
      if (i != best) second = std::max(second, x[i]);
    }
    if (x[best] - second <= margin) continue;
    ++compared;
    CHECK(static_cast<std::size_t>(std::max_element(y, y + vocab) - y) == best);
  }
  return compared;
}

class Prompts : public RequestSource {
 public:
  explicit Prompts(std::vector<Request> requests) : requests_(std::move(requests)) {}
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

const std::vector<Settings> kSparse = {
    {"streaming", {{"streaming.window", "100"}, {"streaming.sinks", "4"}}},
    {"quest", {{"quest.tokens", "96"}}},
    {"quest", {{"quest.tokens", "96"}, {"quest.per_query_head", "true"}}},
    {"snapkv", {{"snapkv.tokens", "150"}}},
    {"ada_snapkv", {{"ada_snapkv.tokens", "170"}}},
    {"pyramidkv", {{"pyramidkv.tokens", "180"}}},
};

}  // namespace

TEST_CASE("drawn and loaded weights are those of the host, bit for bit") {
  Gpu gpu;
  const auto compare = [&](const ModelConfig& config, const cuda::DeviceWeights& device,
                           const Weights& host) {
    const auto elements = [](const MatrixView& view) {
      return static_cast<std::size_t>(view.rows * view.columns);
    };
    const auto bytes_of = [&](const MatrixView& view) { return elements(view) * size_of(device.dtype); };
    const auto equal = [&](const std::byte* on_device, const MatrixView& view) {
      std::vector<std::byte> bytes(bytes_of(view)), want(bytes_of(view));
      const std::vector<float> values = widened(view);
      convert_from_float(values.data(), device.dtype, want.data(), values.size());  // exact, or rounded once
      cuda::copy_to_host(bytes.data(), on_device, bytes.size(), gpu.stream());
      gpu.synchronize();
      CHECK(bytes == want);
    };
    equal(device.embedding, host.embedding);
    equal(device.lm_head, host.lm_head);
    for (std::size_t i = 0; i < host.layers.size(); ++i) {
      const LayerWeights& w = host.layers[i];
      const cuda::DeviceLayerWeights& d = device.layers[i];
      equal(d.qkv, w.q);
      equal(d.qkv + bytes_of(w.q), w.k);
      equal(d.qkv + bytes_of(w.q) + bytes_of(w.k), w.v);
      equal(d.o, w.o);
      equal(d.gate_up, w.gate);
      equal(d.gate_up + bytes_of(w.gate), w.up);
      equal(d.down, w.down);
      CHECK((d.q_bias != nullptr) == config.qkv_bias);
      CHECK((d.q_norm != nullptr) == config.qk_norm);
      CHECK((d.post_mlp_norm != nullptr) == config.post_norms);
    }
  };
  const auto alone = make_local_communicator();
  for (const char* name : {"qwen2-tied", "qwen2-untied-yarn", "llama3", "gemma3-text"}) {
    CAPTURE(name);
    const std::string folder = std::string(TESSERA_FIXTURES) + "/" + name;
    ModelConfig config = read_model_config(folder);
    MemoryMeter meter;
    cuda::DeviceLoadOptions load;
    load.device = Gpu::device();
    load.dtype = config.dtype == DType::kF16 ? DType::kF16 : DType::kBF16;  // files in fp32 are rounded
    compare(config, cuda::load_device_weights(folder, config, load, meter),
            load_weights(folder, config, {}, *alone, meter));
    load.random_seed = 5;
    compare(config, cuda::load_device_weights("", config, load, meter),
            load_weights("", config, {5}, *alone, meter));
  }
}

TEST_CASE("logits of a prompt and of steps are within twice the error of low precision") {
  for (const char* name : kFixtureShapes) {
    for (const DType dtype : {DType::kBF16, DType::kF16}) {
      CAPTURE(name);
      CAPTURE(name_of(dtype));
      const ModelConfig config = drawn_config(name, dtype);
      const std::vector<std::int32_t> tokens = drawn_tokens(config, kTotal, 3);
      CpuModel cpu(config, kPrompt, kTotal, 1);
      const std::vector<float> exact = forced_logits(cpu.transformer, tokens, kPrompt, kTotal);
      const double allowed = 2 * own_error(cpu, tokens, kPrompt, exact);
      GpuModel gpu(config, kPrompt, kTotal, 1);
      const std::vector<float> got = forced_logits(*gpu.model, tokens, kPrompt, kTotal);
      REQUIRE(got.size() == exact.size());
      const double error = largest_difference(got.data(), exact.data(), exact.size());
      CHECK(error <= allowed);
      const int rows = compare_best(got, exact, static_cast<std::size_t>(config.vocab), allowed);
      std::printf("%s %s: error %.2e of %.2e allowed, %d rows of %d with a margin\n", name,
                  std::string(name_of(dtype)).c_str(), error, allowed, rows, static_cast<int>(kSteps) + 1);
      CHECK(gpu.model->cache().tables().used_slots() == 0);
    }
  }
}

TEST_CASE("logits of any rows of a prompt, of one token and of several chunks") {
  const ModelConfig config = drawn_config("qwen2-tied", DType::kBF16);
  constexpr std::int64_t kLong = cuda::kDeviceChunkTokens + 700;
  const std::vector<std::int32_t> tokens = drawn_tokens(config, kLong, 4);
  for (const std::int64_t length : {std::int64_t{1}, std::int64_t{64}, std::int64_t{65}, kLong}) {
    CAPTURE(length);
    std::vector<std::int64_t> wanted = {0};
    for (const std::int64_t position : {length / 3, length / 2, length - 1}) {
      if (position > wanted.back()) wanted.push_back(position);
    }
    const SequencePartition partition(length, 1);
    const auto run = [&](LanguageModel& model) {
      std::vector<float> logits;
      std::vector<std::int32_t> best;
      const int sequence = model.add_sequence(length + 1);
      model.set_want_logits(true);
      model.prefill({sequence, &partition, {tokens.data(), static_cast<std::size_t>(length)}, wanted},
                    logits);
      model.greedy_tokens(best);
      CHECK(best.size() == wanted.size());
      model.remove_sequence(sequence);
      return logits;
    };
    CpuModel cpu(config, length, length + 1, 1);
    GpuModel gpu(config, length, length + 1, 1);
    const std::vector<float> exact = run(cpu.transformer), got = run(*gpu.model);
    REQUIRE(got.size() == exact.size());
    double largest = 0;
    for (const float value : exact) largest = std::max(largest, std::abs(double{value}));
    CHECK(largest_difference(got.data(), exact.data(), exact.size()) <= 0.05 * largest);
  }
}

TEST_CASE("steps in a graph are bitwise those launched one by one, timed or not, under every method") {
  // Steps 32 and 64 run with events between their operations.
  constexpr std::int64_t kMany = 70;
  std::vector<Settings> all = kSparse;
  all.push_back({});
  for (const Settings& settings : all) {
    CAPTURE(settings.decode);
    const char* name = std::string(settings.decode) == "dense" ? "gemma3-text" : "qwen2-tied";
    const ModelConfig config = drawn_config(name, DType::kBF16);
    const AttentionPlan plan = plan_of(settings);
    const std::vector<std::int32_t> tokens = drawn_tokens(config, kPrompt + kMany, 5);
    GpuModel with(config, kPrompt, kPrompt + kMany, 1, plan, true);
    GpuModel without(config, kPrompt, kPrompt + kMany, 1, plan, false);
    const std::vector<float> a = forced_logits(*with.model, tokens, kPrompt, kPrompt + kMany);
    const std::vector<float> b = forced_logits(*without.model, tokens, kPrompt, kPrompt + kMany);
    REQUIRE(a.size() == b.size());
    CHECK(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
    CHECK(with.model->cache().tables().used_slots() == 0);
  }
}

TEST_CASE("sparse decoding reads and keeps what the CPU backend does, and says nearly the same") {
  for (const char* name : {"qwen2-tied", "gemma3-text"}) {
    const ModelConfig config = drawn_config(name, DType::kF16);
    const auto vocab = static_cast<std::size_t>(config.vocab);
    const std::vector<std::int32_t> tokens = drawn_tokens(config, kTotal, 6);
    CpuModel dense(config, kPrompt, kTotal, 1);
    const std::vector<float> full = forced_logits(dense.transformer, tokens, kPrompt, kTotal);
    const double rounding = own_error(dense, tokens, kPrompt, full);
    for (const Settings& settings : kSparse) {
      CAPTURE(settings.decode);
      CAPTURE(name);
      const AttentionPlan plan = plan_of(settings);
      CpuModel cpu(config, kPrompt, kTotal, 1, plan);
      GpuModel gpu(config, kPrompt, kTotal, 1, plan);
      AttentionCounts of_cpu, of_gpu;
      const std::vector<float> exact = forced_logits(cpu.transformer, tokens, kPrompt, kTotal, &of_cpu);
      const std::vector<float> got = forced_logits(*gpu.model, tokens, kPrompt, kTotal, &of_gpu);
      if (std::string(settings.decode) != "ada_snapkv") {  // which head wins a token may differ there
        CHECK(of_gpu.kv_kept == of_cpu.kv_kept);
        CHECK(of_gpu.kv_read == of_cpu.kv_read);
        CHECK(of_gpu.kv_read_first == of_cpu.kv_read_first);
      }
      CHECK(of_gpu.steps == of_cpu.steps);
      CHECK(of_gpu.pairs_visible == of_cpu.pairs_visible);
      // A choice that is a near tie may fall otherwise, and then shows: the middle row must not.
      const double error = median_row_error(got, exact, vocab);
      const double sparsity = median_row_error(full, exact, vocab);
      std::printf("%s %s: error %.2e, where sparsity changes %.2e\n", settings.decode, name, error, sparsity);
      CHECK(error <= 2 * rounding + 0.25 * sparsity);
      CHECK(gpu.model->cache().tables().used_slots() == 0);
    }
  }
}

TEST_CASE("prompts under block_sparse see what they see on the CPU, and say nearly the same") {
  constexpr std::int64_t kLong = 1500, kEnd = kLong + 10;
  for (const char* name : {"qwen2-tied", "gemma3-text"}) {
    const ModelConfig config = drawn_config(name, DType::kF16);
    const auto vocab = static_cast<std::size_t>(config.vocab);
    const std::vector<std::int32_t> tokens = drawn_tokens(config, kEnd, 9);
    CpuModel dense(config, kLong, kEnd, 1);
    const std::vector<float> full = forced_logits(dense.transformer, tokens, kLong, kEnd);
    for (const auto& [edge, blocks] :
         {std::pair{"64", "6"}, std::pair{"64", "1"}, std::pair{"128", "4"}, std::pair{"64", "100"},
          std::pair{"16", "24"}, std::pair{"16", "1"}, std::pair{"16", "100"}, std::pair{"32", "12"}}) {
      CAPTURE(name);
      CAPTURE(edge);
      CAPTURE(blocks);
      const AttentionPlan plan(
          MethodSettings(find_method(Phase::kPrefill, "block_sparse"),
                         std::map<std::string, std::string>{{"block_sparse.edge", edge},
                                                            {"block_sparse.blocks", blocks}}),
          MethodSettings(find_method(Phase::kDecode, "dense"), {}));
      CpuModel cpu(config, kLong, kEnd, 1, plan);
      GpuModel gpu(config, kLong, kEnd, 1, plan);
      AttentionCounts of_cpu, of_gpu;
      const std::vector<float> exact = forced_logits(cpu.transformer, tokens, kLong, kEnd, &of_cpu);
      const std::vector<float> got = forced_logits(*gpu.model, tokens, kLong, kEnd, &of_gpu);
      CHECK(of_gpu.pairs_visible == of_cpu.pairs_visible);
      double largest = 0;
      for (const float value : full) largest = std::max(largest, std::abs(double{value}));
      const double error = median_row_error(got, exact, vocab);
      const double sparsity = median_row_error(full, exact, vocab);
      std::printf("block_sparse %s of %s, %s: error %.2e, where sparsity changes %.2e\n", blocks, edge, name,
                  error, sparsity);
      CHECK(error <= 0.01 * largest + 0.25 * sparsity);
      CHECK(gpu.model->cache().tables().used_slots() == 0);
    }
  }
}

TEST_CASE("full budgets give dense logits") {
  const ModelConfig config = drawn_config("llama3", DType::kF16);
  const std::vector<std::int32_t> tokens = drawn_tokens(config, kTotal, 7);
  CpuModel cpu(config, kPrompt, kTotal, 1);
  const std::vector<float> exact = forced_logits(cpu.transformer, tokens, kPrompt, kTotal);
  const double allowed = 2 * own_error(cpu, tokens, kPrompt, exact);
  for (const Settings& settings :
       {Settings{"streaming", {{"streaming.window", "1000"}}}, Settings{"quest", {{"quest.tokens", "1024"}}},
        Settings{"snapkv", {{"snapkv.tokens", "1000"}}},
        Settings{"ada_snapkv", {{"ada_snapkv.tokens", "1000"}}}}) {
    CAPTURE(settings.decode);
    GpuModel gpu(config, kPrompt, kTotal, 1, plan_of(settings));
    const std::vector<float> got = forced_logits(*gpu.model, tokens, kPrompt, kTotal);
    REQUIRE(got.size() == exact.size());
    CHECK(largest_difference(got.data(), exact.data(), exact.size()) <= allowed);
  }
}

TEST_CASE("sequences of a batch answer as they do alone, as they join and leave") {
  // Products with other numbers of rows add in another order: what is forced may differ by low precision.
  const ModelConfig config = drawn_config("qwen2-untied-yarn", DType::kF16);
  std::vector<Settings> all = {{}, kSparse[0], kSparse[1], kSparse[3]};
  for (const Settings& settings : all) {
    CAPTURE(settings.decode);
    const AttentionPlan plan = plan_of(settings);
    constexpr int kSequences = 5;
    const auto vocab = static_cast<std::size_t>(config.vocab);
    std::vector<std::vector<std::int32_t>> tokens;
    std::vector<std::vector<float>> alone;
    std::vector<std::int64_t> prompts;
    GpuModel single(config, kPrompt, kTotal, 1, plan);
    for (int i = 0; i < kSequences; ++i) {
      prompts.push_back(kPrompt - 53 * i);
      tokens.push_back(
          drawn_tokens(config, prompts.back() + kSteps - 3 * i, 20 + static_cast<std::uint64_t>(i)));
      alone.push_back(forced_logits(*single.model, tokens.back(), prompts.back(), kTotal));
    }
    GpuModel together(config, kPrompt, kTotal, kSequences, plan);
    LanguageModel& model = *together.model;
    model.set_want_logits(true);
    std::vector<SequencePartition> partitions;
    for (const std::int64_t prompt : prompts) partitions.emplace_back(prompt, 1);
    std::vector<int> handles;
    std::vector<std::vector<float>> got(kSequences);
    std::vector<std::int32_t> best;
    std::vector<float> logits;
    for (std::int64_t step = 0; step < kSteps; ++step) {
      if (step % 4 == 0 && handles.size() < kSequences) {  // one joins every fourth step
        const std::size_t i = handles.size();
        const std::int64_t last = prompts[i] - 1;
        handles.push_back(model.add_sequence(kTotal));
        model.prefill({handles[i],
                       &partitions[i],
                       {tokens[i].data(), static_cast<std::size_t>(prompts[i])},
                       {&last, 1}},
                      got[i]);
        model.greedy_tokens(best);
      }
      std::vector<DecodeRow> rows;
      std::vector<std::size_t> of_row;
      for (std::size_t i = handles.size(); i-- > 0;) {
        const std::size_t at = static_cast<std::size_t>(prompts[i]) + got[i].size() / vocab - 1;
        if (at >= tokens[i].size()) continue;  // it has left
        rows.push_back(
            {handles[i], &partitions[i], static_cast<std::int32_t>(at), tokens[i][at], nullptr, nullptr});
        of_row.push_back(i);
      }
      model.decode(rows, logits);
      model.greedy_tokens(best);
      for (std::size_t row = 0; row < rows.size(); ++row) {
        const auto first = logits.begin() + static_cast<std::ptrdiff_t>(row * vocab);
        got[of_row[row]].insert(got[of_row[row]].end(), first, first + static_cast<std::ptrdiff_t>(vocab));
      }
    }
    for (std::size_t i = 0; i < kSequences; ++i) {
      CAPTURE(i);
      double largest = 0;
      for (const float value : alone[i]) largest = std::max(largest, std::abs(double{value}));
      REQUIRE(got[i].size() <= alone[i].size());
      alone[i].resize(got[i].size());
      CHECK(median_row_error(got[i], alone[i], vocab) <= 0.01 * largest);
    }
  }
}

TEST_CASE("the engine runs it: texts, counts, times and memory") {
  const ModelConfig config = drawn_config("gemma3", DType::kBF16);
  std::vector<Request> requests;
  for (int i = 0; i < 7; ++i) {
    const std::int64_t length = kPrompt - 37 * i;
    requests.push_back({i, drawn_tokens(config, length, 40 + static_cast<std::uint64_t>(i)), 5 + 3 * i});
  }
  for (const int batch : {1, 3}) {
    GpuModel gpu(config, kPrompt, kTotal, batch);
    Grid grid = one_rank_grid();
    Engine engine(*gpu.model, grid, gpu.meter, {batch, {}});
    Prompts source(requests);
    CHECK(engine.run(&source));
    CHECK(gpu.model->cache().tables().used_slots() == 0);
    REQUIRE(source.completions.size() == requests.size());
    for (const auto& [id, completion] : source.completions) {
      CAPTURE(id);
      CHECK(completion.finish_reason == "length");
      CHECK(static_cast<std::int64_t>(completion.output.size()) == 5 + 3 * id);
      REQUIRE(completion.ranks.size() == 1);
      const RankReport& rank = completion.ranks.front();
      double seconds = 0;
      for (const double value : rank.op_s) {
        CHECK(value >= 0);
        seconds += value;
      }
      CHECK(seconds > 0);
      CHECK(rank.peak_weights >= gpu.weights.bytes());
      CHECK(rank.peak_kv > 0);
      CHECK(rank.peak_workspace > 0);
    }
    const DeviceNeeds needs =
        device_bytes_needed(config, {{1, 1, 1}, kPrompt, kTotal, batch, config.dtype}, {});
    CHECK(gpu.meter.peak(MemoryKind::kWeights) <= needs.weights);
    CHECK(gpu.meter.peak(MemoryKind::kKv) == needs.kv);
    CHECK(gpu.meter.peak(MemoryKind::kWorkspace) <= needs.workspace);
  }
}

TEST_CASE("NaN is a numerical error, and what the device cannot run is refused") {
  const ModelConfig config = drawn_config("qwen2-tied", DType::kBF16);
  GpuModel gpu(config, kPrompt, kTotal, 1);
  const cuda::CudaStream stream(Gpu::device());
  const std::size_t offset = static_cast<std::size_t>(gpu.weights.final_norm - gpu.weights.storage.data());
  cuda::fill_bytes(gpu.weights.storage.data() + offset, 0xff, 2, stream);
  stream.synchronize();
  CHECK_THROWS_AS(forced_logits(*gpu.model, drawn_tokens(config, kPrompt, 8), kPrompt, kTotal),
                  NumericalError);

  cuda::DeviceModelShape shape;
  shape.device = Gpu::device();
  const AttentionPlan dense;
  ModelConfig narrow = config;
  narrow.head_dim = 16;
  CHECK_THROWS_AS(cuda::check_device_model(narrow, dense, shape), UsageError);
  shape.batch = 65;
  CHECK_THROWS_AS(cuda::check_device_model(config, dense, shape), UsageError);
  shape.batch = 1;
  CHECK_THROWS_AS(cuda::check_device_model(config, plan_of({"topp_pages"}), shape), UsageError);
  const auto prompts_under = [](const Settings& prefill) {
    return AttentionPlan(MethodSettings(find_method(Phase::kPrefill, prefill.decode), prefill.values),
                         MethodSettings(find_method(Phase::kDecode, "dense"), {}));
  };
  CHECK_THROWS_AS(cuda::check_device_model(config, prompts_under({"xattention"}), shape), UsageError);
  const AttentionPlan small_blocks = prompts_under({"block_sparse", {{"block_sparse.edge", "32"}}});
  ModelConfig wide = config;
  wide.head_dim = 256;
  CHECK_THROWS_AS(cuda::check_device_model(wide, small_blocks, shape), UsageError);
  cuda::check_device_model(config, small_blocks, shape);
  cuda::check_device_model(config, dense, shape);
}
