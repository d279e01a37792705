// One model on one GPU with drawn weights: prefill, then decode steps, and where their time goes.
//   bench_model_device DIR LENGTH [BATCH [METHOD [KEY=VALUE …]]]        DIR needs a config.json alone
// Prints the median of the steps, the share of the time that the bytes they read take at `kReadRate`, and
// seconds by operation. The first kWarmSteps steps are left out: they are launched one by one and captured.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "io/rope_config.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/random.hpp"
#include "runtime/model/device_model.hpp"
#include "runtime/model/memory_needs.hpp"

using namespace tessera;

namespace {

constexpr double kReadRate = 4.47e12;  // bytes a second that one H200 reads (DESIGN.md section 8)
constexpr int kWarmSteps = 4;
constexpr int kSteps = 100;

void print_times(const char* what, const OpTimes& times, Phase phase, int layers) {
  OpTimes copy = times;
  std::printf("%s:", what);
  for (int o = 0; o < kOperations; ++o) {
    double seconds = 0;
    for (int layer = -1; layer < layers; ++layer) seconds += copy.at(phase, layer, static_cast<Operation>(o));
    if (seconds > 0)
      std::printf(" %s %.4f", std::string(kOperationNames[static_cast<std::size_t>(o)]).c_str(), seconds);
  }
  std::printf(" s\n");
}

void run(int argc, char** argv) {
  const ModelConfig config = read_model_config(argv[1]);
  const std::int64_t length = std::atoll(argv[2]);
  const int batch = argc > 3 ? std::atoi(argv[3]) : 1;
  std::map<std::string, std::string> given;
  for (int i = 5; i < argc; ++i) {
    const std::string pair = argv[i];
    given[pair.substr(0, pair.find('='))] = pair.substr(pair.find('=') + 1);
  }
  const AttentionPlan plan(MethodSettings(find_method(Phase::kPrefill, "dense"), {}),
                           MethodSettings(find_method(Phase::kDecode, argc > 4 ? argv[4] : "dense"), given));
  const std::int64_t total = length + kWarmSteps + kSteps + 1;
  const RopeConfig rope = resolve_rope(config, "auto", total).rope;
  MemoryMeter meter;
  cuda::DeviceLoadOptions load;
  load.device = {DeviceKind::kCuda, 0};
  load.dtype = config.dtype == DType::kF16 ? DType::kF16 : DType::kBF16;
  load.random_seed = 1;
  const cuda::DeviceWeights weights = cuda::load_device_weights(argv[1], config, load, meter);
  cuda::DeviceModelShape shape;
  shape.device = load.device;
  shape.kv_slots = kv_slots_needed(config, {{1, 1, 1}, length, total, batch, load.dtype}, plan);
  shape.max_tokens = total;
  shape.batch = batch;
  cuda::DeviceModel model(config, rope, weights, shape, meter, plan);

  std::vector<std::int32_t> tokens;
  for (std::int64_t t = 0; t < length; ++t) {
    tokens.push_back(static_cast<std::int32_t>(hash_counter(2, 0, static_cast<std::uint64_t>(t)) %
                                               static_cast<std::uint64_t>(config.vocab)));
  }
  const SequencePartition partition(length, 1);
  const std::int64_t last = length - 1;
  const int layers = static_cast<int>(config.layers);
  std::vector<float> logits;
  std::vector<std::int32_t> next;
  std::vector<DecodeRow> rows;
  const auto prefill = [&](int sequence, const char* note) {
    model.times().clear();
    const auto start = HostClock::now();
    model.prefill({sequence, &partition, tokens, {&last, 1}}, logits);
    model.greedy_tokens(next);
    if (note == nullptr) return;
    std::printf("prefill of %lld tokens%s: %.3f s\n", static_cast<long long>(length), note,
                seconds_since(start));
    print_times("  device", model.times(), Phase::kPrefill, layers);
  };
  const int warm = model.add_sequence(total);  // libraries and pools
  prefill(warm, ", the first");
  model.remove_sequence(warm);
  for (int i = 0; i < batch; ++i) {
    const int sequence = model.add_sequence(total);
    prefill(sequence, i == 0 ? "" : nullptr);
    rows.push_back({sequence, &partition, static_cast<std::int32_t>(length), next.front(), nullptr, nullptr});
  }

  AttentionCounts counts;
  std::vector<double> seconds;
  model.times().clear();
  for (int step = 0; step < kWarmSteps + kSteps; ++step) {
    if (step == kWarmSteps) model.times().clear();
    rows.front().counts = step == kWarmSteps ? &counts : nullptr;
    const auto start = HostClock::now();
    model.decode(rows, logits);
    model.greedy_tokens(next);
    if (step >= kWarmSteps) seconds.push_back(seconds_since(start));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      rows[i].token = next[i];
      ++rows[i].position;
    }
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  double read = 0;  // cache rows of all query heads in one step of one sequence
  for (const std::uint64_t value : counts.kv_read) read += static_cast<double>(value);
  const double group = static_cast<double>(config.heads / config.kv_heads);
  const double kv_bytes = read / group * 2 * static_cast<double>(config.head_dim) * 2 * batch;
  const double weight_bytes =
      static_cast<double>(weights.bytes()) -
      (config.tied_embeddings ? 0 : 2.0 * static_cast<double>(config.vocab * config.hidden));
  const double floor = (weight_bytes + kv_bytes) / kReadRate;
  std::printf(
      "decode, batch %d, %s: median %.3f ms a step, %.1f tokens/s; reads %.2f GB, %.1f %% of the read rate\n",
      batch, std::string(plan.decode.method().name).c_str(), median * 1e3, batch / median,
      (weight_bytes + kv_bytes) * 1e-9, 100 * floor / median);
  print_times("  device, all steps", model.times(), Phase::kDecode, layers);
  std::printf("memory: weights %.2f, KV %.2f, workspace %.2f GB\n",
              static_cast<double>(meter.peak(MemoryKind::kWeights)) * 1e-9,
              static_cast<double>(meter.peak(MemoryKind::kKv)) * 1e-9,
              static_cast<double>(meter.peak(MemoryKind::kWorkspace)) * 1e-9);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::printf("usage: bench_model_device DIR LENGTH [BATCH [METHOD [KEY=VALUE ...]]]\n");
    return 2;
  }
  try {
    run(argc, argv);
  } catch (const Error& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  return 0;
}
