#include "jobs/bench.hpp"

#include <fmt/core.h>
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "attention/dense.hpp"
#include "io/model_config.hpp"
#include "jobs/bench_gpu/bench_gpu.hpp"
#include "jobs/bench_sparse.hpp"
#include "jobs/bench_table.hpp"
#include "jobs/info.hpp"
#include "kvcache/kv_cache.hpp"
#include "parallel/grid.hpp"
#include "runtime/core/blas.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/gemm.hpp"
#include "runtime/core/random.hpp"
#include "runtime/model/engine.hpp"
#include "runtime/model/memory_needs.hpp"
#include "runtime/model/transformer.hpp"

namespace tessera {
namespace {

using nlohmann::json;

double median_seconds(int repeats, const std::function<void()>& work) {
  work();  // warm-up: first touch, thread pools
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const auto start = HostClock::now();
    work();
    seconds.push_back(seconds_since(start));
  }
  return median_of(std::move(seconds));
}

std::vector<float> random_floats(std::size_t count, std::uint64_t stream) {
  std::vector<float> values(count);
#pragma omp parallel for
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(hash_counter(1, stream, i) >> 40) * 0x1.0p-23f - 1.0f;
  }
  return values;
}

Grid grid_of_one() {
  Grid grid;
  grid.world = make_local_communicator();
  grid.group = make_local_communicator();
  grid.tp = make_local_communicator();
  grid.sp = make_local_communicator();
  return grid;
}

LoadOptions load_options(const BenchOptions& options) {
  LoadOptions load;
  if (options.weights.random) load.random_seed = options.weights.seed;
  load.as_f32 = !options.weights_dtype.as_file;
  return load;
}

json common(const BenchOptions& options, const char* kind) {
  return {{"bench", kind},
          {"threads", omp_get_max_threads()},
          {"repeats", options.repeats},
          {"cpu", collect_host_info().cpu},
          {"blas", blas_description()}};
}

// Prefill of `length` tokens and decoding of `tokens` more, one sequence.
json bench_end_to_end(const BenchOptions& options) {
  const ModelConfig config = read_model_config(options.model);
  Grid grid = grid_of_one();
  MemoryMeter meter;
  const Weights weights = load_weights(options.model, config, load_options(options), *grid.tp, meter);
  const std::int64_t total = options.length + options.tokens;
  const HeadShare share = head_share(config, 0, 1);
  KvCache cache({static_cast<int>(config.layers), static_cast<int>(share.kv_heads),
                 static_cast<int>(config.head_dim), DType::kF32},
                kv_slots_needed(config, {grid.shape, options.length, total, 1, DType::kF32}, {}), meter);
  Transformer transformer(config, resolve_rope(config, "auto", total).rope, weights, grid, cache, total,
                          meter);

  std::vector<std::int32_t> prompt(static_cast<std::size_t>(options.length));
  for (std::size_t i = 0; i < prompt.size(); ++i) {
    prompt[i] = static_cast<std::int32_t>(hash_counter(2, 0, i) % static_cast<std::uint64_t>(config.vocab));
  }
  const SequencePartition partition(options.length, 1);
  const std::int64_t last = options.length - 1;
  std::vector<double> prefill_s, decode_s;
  std::vector<float> logits;
  std::vector<std::int32_t> next;
  for (int repeat = -1; repeat < options.repeats; ++repeat) {  // the first one warms up
    const int sequence = cache.add_sequence(total);
    auto start = HostClock::now();
    transformer.prefill({sequence, &partition, prompt, {&last, 1}}, logits);
    transformer.greedy_tokens(next);
    const double prefill = seconds_since(start);
    start = HostClock::now();
    for (std::int64_t i = 0; i < options.tokens; ++i) {
      const DecodeRow row{sequence, &partition, static_cast<std::int32_t>(options.length + i), next.front()};
      transformer.decode({&row, 1}, logits);
      transformer.greedy_tokens(next);
    }
    const double decode = seconds_since(start);
    cache.remove_sequence(sequence);
    if (repeat < 0) continue;
    prefill_s.push_back(prefill);
    decode_s.push_back(decode / static_cast<double>(std::max<std::int64_t>(1, options.tokens)));
  }
  json result = common(options, "e2e");
  result["length"] = options.length;
  result["tokens"] = options.tokens;
  result["prefill_s"] = median_of(prefill_s);
  result["prefill_tokens_per_s"] = static_cast<double>(options.length) / median_of(prefill_s);
  result["decode_s_per_token"] = median_of(decode_s);
  result["decode_weight_bytes_per_s"] = static_cast<double>(weights.bytes) / median_of(decode_s);
  return result;
}

// Loads the weights and reads every byte of them once.
json bench_load(const BenchOptions& options) {
  const ModelConfig config = read_model_config(options.model);
  auto alone = make_local_communicator();
  std::int64_t bytes = 0;
  std::uint64_t check = 0;
  const double seconds = median_seconds(options.repeats, [&] {
    MemoryMeter meter;
    const Weights weights = load_weights(options.model, config, load_options(options), *alone, meter);
    bytes = weights.bytes;
    check = touch_all(weights);
  });
  json result = common(options, "load");
  result["bytes"] = bytes;
  result["seconds"] = seconds;
  result["gb_per_s"] = static_cast<double>(bytes) / seconds / 1e9;
  result["checksum"] = check;
  return result;
}

// (out, in) of the matrices of a layer, each shape once.
std::set<std::pair<std::int64_t, std::int64_t>> layer_shapes(const ModelConfig& config) {
  std::set<std::pair<std::int64_t, std::int64_t>> shapes;
  for (const TensorSpec& spec : declare_tensors(config)) {
    if (spec.layer == 0 && !spec.is_vector) shapes.insert({spec.rows, spec.columns});
  }
  return shapes;
}

// Linear layers of the model's shapes with random weights, at batch sizes from one row to the prompt.
json bench_gemm(const BenchOptions& options) {
  const ModelConfig config = read_model_config(options.model);
  const DType dtype = options.weights_dtype.as_file ? config.dtype : DType::kF32;
  json result = common(options, "gemm");
  result["weights_dtype"] = name_of(dtype);
  result["shapes"] = json::array();
  for (const auto& [out, in] : layer_shapes(config)) {
    const std::vector<float> w = random_floats(static_cast<std::size_t>(out * in), 2);
    std::vector<std::byte> stored(w.size() * size_of(dtype));
    convert_from_float(w.data(), dtype, stored.data(), w.size());
    for (const std::int64_t rows : std::set<std::int64_t>{1, 16, 512, options.length}) {
      const std::vector<float> x = random_floats(static_cast<std::size_t>(rows * in), 1);
      std::vector<float> y(static_cast<std::size_t>(rows * out));
      LinearParams p;
      p.rows = rows;
      p.x = x.data();
      p.weight = {stored.data(), out, in, dtype};
      p.y = y.data();
      const double seconds = median_seconds(options.repeats, [&] { linear(p); });
      const double flops = 2.0 * static_cast<double>(rows * out * in);
      result["shapes"].push_back({{"rows", rows},
                                  {"out", out},
                                  {"in", in},
                                  {"seconds", seconds},
                                  {"gflop_per_s", flops / seconds / 1e9},
                                  {"weight_gb_per_s", static_cast<double>(stored.size()) / seconds / 1e9}});
    }
  }
  return result;
}

// Dense attention of one layer of the model, the whole of its heads.
json bench_attention(const BenchOptions& options) {
  const ModelConfig config = read_model_config(options.model);
  const std::int64_t tokens = options.length;
  const std::int64_t q_width = config.heads * config.head_dim, kv_width = config.kv_heads * config.head_dim;
  MemoryMeter meter;
  KvCache cache({1, static_cast<int>(config.kv_heads), static_cast<int>(config.head_dim), DType::kF32},
                config.kv_heads * ceil_div(tokens, kBlockTokens), meter);
  const int sequence = cache.add_sequence(tokens);
  std::vector<std::int32_t> positions(static_cast<std::size_t>(tokens));
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int32_t>(i);
  const std::vector<float> q = random_floats(static_cast<std::size_t>(tokens * q_width), 3);
  const std::vector<float> k = random_floats(static_cast<std::size_t>(tokens * kv_width), 4);
  std::vector<float> out(q.size());
  cache.append({sequence, 0, tokens, positions.data(), k.data(), k.data(), kv_width});

  PrefillAttentionParams prefill;
  prefill.tokens = tokens;
  prefill.heads = static_cast<int>(config.heads);
  prefill.q = q.data();
  prefill.positions = positions.data();
  prefill.kv = cache.view(sequence, 0, tokens);
  prefill.scale = config.attention_scale;
  prefill.out = out.data();
  const double prefill_s = median_seconds(options.repeats, [&] { prefill_attention(prefill); });

  DecodeAttentionParams decode;
  decode.sequences = 1;
  decode.heads = prefill.heads;
  decode.q = q.data();
  decode.positions = &positions.back();
  decode.kv = &prefill.kv;
  decode.scale = prefill.scale;
  decode.out = out.data();
  const double decode_s = median_seconds(options.repeats, [&] { decode_attention(decode); });

  json result = common(options, "attention");
  const double pairs = static_cast<double>(tokens) * static_cast<double>(tokens + 1) / 2;
  result["length"] = tokens;
  result["prefill_s"] = prefill_s;
  result["prefill_gflop_per_s"] = 4.0 * static_cast<double>(q_width) * pairs / prefill_s / 1e9;
  result["decode_s"] = decode_s;
  result["decode_kv_gb_per_s"] =
      2.0 * sizeof(float) * static_cast<double>(kv_width * tokens) / decode_s / 1e9;
  return result;
}

json run_one(const BenchOptions& options) {
  switch (options.kind) {
    case BenchOptions::Kind::kEndToEnd:
      return bench_end_to_end(options);
    case BenchOptions::Kind::kLoad:
      return bench_load(options);
    case BenchOptions::Kind::kGemm:
      return bench_gemm(options);
    case BenchOptions::Kind::kAttention:
      return bench_attention(options);
    case BenchOptions::Kind::kSparse: {
      json result = common(options, "sparse");
      result.update(bench_sparse(options));
      return result;
    }
    case BenchOptions::Kind::kExchange: {
      json result = common(options, "exchange");
      result.update(bench_exchange(options));
      return result;
    }
    case BenchOptions::Kind::kDecode:
    case BenchOptions::Kind::kSelect:
      break;  // on a GPU alone
  }
  throw InternalError("internal error: a bench is not handled");
}

void print_table(const json& result, const std::string& indent) {
  for (const auto& [name, value] : result.items()) {
    if (value.is_array()) {
      for (const json& row : value) fmt::print("{}{}\n", indent, row.dump());
    } else {
      fmt::print("{}{:<26} {}\n", indent, name, value.is_string() ? value.get<std::string>() : value.dump());
    }
  }
}

// Rows are printed as they come; what is left are details, JSON and the trace.
int show_gpu_bench(const BenchOptions& options) {
  const BenchReport report = run_gpu_bench(options);
  if (options.json)
    fmt::print("{}\n", bench_json(report).dump());
  else if (!report.details.is_null())
    print_table(report.details, "");
  if (!options.trace.empty()) write_bench_trace(report, options.trace);
  return 0;
}

}  // namespace

int run_bench(const BenchOptions& options) {
  if (options.threads > 0) omp_set_num_threads(options.threads);
  if (options.device == DeviceKind::kCuda) return show_gpu_bench(options);
  const json result = run_one(options);
  if (options.json)
    fmt::print("{}\n", result.dump());
  else
    print_table(result, "");
  return 0;
}

}  // namespace tessera
