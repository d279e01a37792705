#include <fmt/format.h>

#include <algorithm>

#include "attention/budget.hpp"
#include "io/rope_config.hpp"
#include "jobs/bench_gpu/gpu_benches.hpp"
#include "jobs/calibrate.hpp"
#include "runtime/core/random.hpp"
#include "runtime/model/accounting.hpp"
#include "runtime/model/device_model.hpp"
#include "runtime/model/memory_needs.hpp"

namespace tessera::cuda {
namespace {

constexpr int kWarmSteps = 4;  // launched one by one, and captured

std::vector<std::int32_t> drawn_prompt(const ModelConfig& config, std::int64_t length) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(length));
  for (std::size_t t = 0; t < tokens.size(); ++t)
    tokens[t] = static_cast<std::int32_t>(hash_counter(2, 0, t) % static_cast<std::uint64_t>(config.vocab));
  return tokens;
}

nlohmann::json seconds_by_operation(OpTimes times, Phase phase, int layers, double divisor) {
  nlohmann::json result = nlohmann::json::object();
  for (int o = 0; o < kOperations; ++o) {
    double seconds = 0;
    for (int layer = -1; layer < layers; ++layer)
      seconds += times.at(phase, layer, static_cast<Operation>(o));
    if (seconds > 0) result[std::string(kOperationNames[static_cast<std::size_t>(o)])] = seconds / divisor;
  }
  return result;
}

// Bytes that one decode step must read: all weights save rows of the embedding, and the cache rows of all
// sequences.
double bytes_of_step(const ModelConfig& config, const DeviceWeights& weights, const AttentionCounts& counts,
                     int batch) {
  double rows = 0;  // of all query heads in one sequence
  for (const std::uint64_t value : counts.kv_read) rows += static_cast<double>(value);
  const double group = static_cast<double>(config.heads) / static_cast<double>(config.kv_heads);
  const double kv = rows / group * 2 * static_cast<double>(config.head_dim) * 2 * batch;
  const double embedding =
      config.tied_embeddings ? 0.0 : 2.0 * static_cast<double>(config.vocab * config.hidden);
  return static_cast<double>(weights.bytes()) - embedding + kv;
}

// What models of one bench share; one is made for each plan.
struct Bench {
  const BenchOptions& options;
  const ModelConfig& config;
  const DeviceWeights& weights;
  MemoryMeter& meter;
  std::int64_t total;  // tokens of a sequence
  RopeConfig rope;

  std::unique_ptr<DeviceModel> make_model(const AttentionPlan& plan, int batch) const {
    DeviceModelShape shape;
    shape.device = GpuTimer::device();
    shape.kv_slots = kv_slots_needed(
        config, {{1, 1, 1}, options.length, total, batch, weights.dtype, weights.dtype}, plan);
    shape.max_tokens = total;
    shape.batch = batch;
    return std::make_unique<DeviceModel>(config, rope, weights, shape, meter, plan);
  }
};

// Budgets that reach --prefill-sparsity on the prompt that is timed.
void solve_prefill(const Bench& bench, const std::vector<std::int32_t>& prompt, AttentionPlan& plan) {
  const double target = *bench.options.prefill_sparsity;
  const std::int64_t length = bench.options.length;
  BudgetResult result;
  if (!needs_calibration(plan.prefill.method())) {
    result = solve_target(plan.prefill, length, bench.options.tokens, target);
  } else {
    const std::unique_ptr<DeviceModel> model = bench.make_model(plan, 1);
    const SequencePartition partition(length, 1);
    const auto climb = [&](std::span<const MethodSettings> ladder) {
      std::vector<PairTotals> totals;
      std::vector<float> logits;
      const int sequence = model->add_sequence(bench.total);
      model->set_ladder(ladder, &totals);
      model->prefill({sequence, &partition, prompt, {}}, logits);
      model->set_ladder({}, nullptr);
      model->remove_sequence(sequence);
      return totals;
    };
    result = calibrate_budget(plan.prefill, length, target, climb).budget;
  }
  for (const auto& [name, value] : result.native) plan.prefill.set(name, value);
}

// The share of the causal pairs, and of the windows of window layers, that the prompt was not shown.
double prompt_sparsity(const ModelConfig& config, const AttentionCounts& counts, std::int64_t length) {
  double visible = 0, causal = 0;
  for (const std::uint64_t pairs : counts.pairs_visible) visible += static_cast<double>(pairs);
  for (const std::int32_t window : config.layer_window)
    causal += static_cast<double>(causal_pairs(length, window)) * static_cast<double>(config.heads);
  return 1 - visible / causal;
}

nlohmann::json native_of(const MethodSettings& settings) {
  nlohmann::json native = nlohmann::json::object();
  for (const MethodParameter& parameter : settings.method().parameters)
    native[std::string(parameter.name)] = settings.real(parameter.name);
  return native;
}

}  // namespace

nlohmann::json bench_model(const BenchOptions& options, const BenchLimits& limits, GpuTimer& gpu,
                           const ShowRow& show) {
  const ModelConfig config = read_model_config(options.model);
  AttentionPlan plan(MethodSettings(find_method(Phase::kPrefill, options.prefill), options.settings),
                     MethodSettings(find_method(Phase::kDecode, options.decode), options.settings));
  DeviceModelShape checked;
  checked.batch = options.batch;
  check_device_model(config, plan, checked);
  const std::int64_t total = options.length + kWarmSteps + options.tokens + 1;
  DeviceLoadOptions load;
  load.device = GpuTimer::device();
  load.dtype = config.dtype == DType::kF16 ? DType::kF16 : DType::kBF16;
  if (options.weights.random) load.random_seed = options.weights.seed;
  MemoryMeter meter;
  const DeviceWeights weights = load_device_weights(options.model, config, load, meter);
  const Bench bench{options, config, weights, meter, total, resolve_rope(config, "auto", total).rope};
  const std::vector<std::int32_t> prompt = drawn_prompt(config, options.length);
  if (options.prefill_sparsity) solve_prefill(bench, prompt, plan);
  const std::unique_ptr<DeviceModel> made = bench.make_model(plan, options.batch);
  DeviceModel& model = *made;
  const SequencePartition partition(options.length, 1);
  const std::int64_t last = options.length - 1;
  const int layers = static_cast<int>(config.layers);
  std::vector<float> logits;
  std::vector<std::int32_t> next;
  const auto seconds_of_prefill = [&](int sequence) {
    const auto start = HostClock::now();
    model.prefill({sequence, &partition, prompt, {&last, 1}}, logits);
    model.greedy_tokens(next);
    return seconds_since(start);
  };
  const std::string name = fmt::format("{} tokens, batch {}", options.length, options.batch);
  BenchRow prefill;
  prefill.work = "prefill of one prompt";
  if (options.prefill != "dense") prefill.work += ", " + options.prefill;
  prefill.shape = name;
  for (int repeat = -1; repeat < options.repeats;
       ++repeat) {  // the first one loads libraries and fills pools
    const int sequence = model.add_sequence(total);
    model.times().clear();
    const double seconds = seconds_of_prefill(sequence);
    if (repeat >= 0) prefill.seconds.push_back(seconds);
    model.remove_sequence(sequence);
  }
  prefill.sm_clock_mhz = gpu.sm_clock_mhz();
  show(prefill);
  nlohmann::json details;
  details["prefill_op_seconds"] = seconds_by_operation(model.times(), Phase::kPrefill, layers, 1);
  details["prefill_sparsity"] = prompt_sparsity(config, model.attention_counts(), options.length);
  if (options.prefill != "dense") details["prefill_budget"] = native_of(plan.prefill);

  std::vector<DecodeRow> rows;
  for (int i = 0; i < options.batch; ++i) {
    const int sequence = model.add_sequence(total);
    seconds_of_prefill(sequence);
    rows.push_back(
        {sequence, &partition, static_cast<std::int32_t>(options.length), next.front(), nullptr, nullptr});
  }
  AttentionCounts counts;
  BenchRow decode;
  decode.work = "decode step, " + options.decode;
  decode.shape = name;
  for (std::int64_t step = 0; step < kWarmSteps + options.tokens; ++step) {
    if (step == kWarmSteps) model.times().clear();
    rows.front().counts = step == kWarmSteps ? &counts : nullptr;
    const auto start = HostClock::now();
    model.decode(rows, logits);
    model.greedy_tokens(next);
    if (step >= kWarmSteps) decode.seconds.push_back(seconds_since(start));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      rows[i].token = next[i];
      ++rows[i].position;
    }
  }
  decode.sm_clock_mhz = gpu.sm_clock_mhz();
  decode.bytes = bytes_of_step(config, weights, counts, options.batch);
  decode.limit = BenchLimit::kRead;
  show(decode);
  details["decode_op_seconds"] =
      seconds_by_operation(model.times(), Phase::kDecode, layers, static_cast<double>(options.tokens));
  details["decode_floor_seconds"] = decode.bytes / limits.read_bytes_per_s;
  details["bytes"] = {{"weights", meter.peak(MemoryKind::kWeights)},
                      {"kv", meter.peak(MemoryKind::kKv)},
                      {"workspace", meter.peak(MemoryKind::kWorkspace)}};
  return details;
}

}  // namespace tessera::cuda
