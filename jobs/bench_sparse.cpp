#include "jobs/bench_sparse.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <numeric>
#include <optional>
#include <span>
#include <utility>

#include "attention/budget.hpp"
#include "attention/dense.hpp"
#include "attention/needed_units.hpp"
#include "attention/select.hpp"
#include "attention/selection_builder.hpp"
#include "attention/sparse.hpp"
#include "io/model_config.hpp"
#include "jobs/bench_table.hpp"
#include "kvcache/kv_cache.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/random.hpp"
#include "runtime/model/op_times.hpp"

namespace tessera {
namespace {

using nlohmann::json;

constexpr int kExchangeRanks = 4;
// Diagonals of the constructed rows: all within this of the main one; and the fewest that vertical_slash
// keeps, where columns, which lie everywhere, take the whole budget.
constexpr std::int64_t kNearDiagonals = 1024;
constexpr std::int64_t kFewDiagonals = 64;
// A decode step takes milliseconds where a prefill takes seconds: more runs for the same steadiness.
constexpr int kDecodeRepeats = 10;

struct LayerShape {
  int heads = 8;
  int kv_heads = 2;
  int head_dim = 64;
  float scale = 0.125f;
};

LayerShape layer_shape(const BenchOptions& options) {
  if (options.model.empty()) return {};
  const ModelConfig config = read_model_config(options.model);
  return {static_cast<int>(config.heads), static_cast<int>(config.kv_heads),
          static_cast<int>(config.head_dim), static_cast<float>(config.attention_scale)};
}

// Standard normal, by Box and Muller (1958).
std::vector<float> gaussian_floats(std::int64_t count, std::uint64_t stream) {
  std::vector<float> values(static_cast<std::size_t>(count));
#pragma omp parallel for
  for (std::int64_t i = 0; i < count; ++i) {
    const auto uniform = [&](std::int64_t draw) {  // in (0, 1]
      return static_cast<double>((hash_counter(1, stream, static_cast<std::uint64_t>(draw)) >> 11) + 1) *
             0x1.0p-53;
    };
    values[static_cast<std::size_t>(i)] = static_cast<float>(
        std::sqrt(-2 * std::log(uniform(2 * i))) * std::cos(2 * std::numbers::pi * uniform(2 * i + 1)));
  }
  return values;
}

// One layer of one sequence, and a cache that holds it with page bounds.
class RandomLayer {
 public:
  RandomLayer(const LayerShape& shape, std::int64_t tokens)
      : shape_(shape),
        tokens_(tokens),
        positions_(static_cast<std::size_t>(tokens)),
        q_(gaussian_floats(tokens * shape.heads * shape.head_dim, 1)),
        k_(gaussian_floats(tokens * shape.kv_heads * shape.head_dim, 2)),
        out_(q_.size()),
        cache_({1, shape.kv_heads, shape.head_dim, DType::kF32, true},
               shape.kv_heads * ceil_div(tokens, kBlockTokens), meter_),
        sequence_(cache_.add_sequence(tokens)) {
    std::iota(positions_.begin(), positions_.end(), 0);
    const std::int64_t width = shape.kv_heads * shape.head_dim;
    const std::vector<float> v = gaussian_floats(tokens * width, 3);
    cache_.append({sequence_, 0, tokens, positions_.data(), k_.data(), v.data(), width});
    view_ = cache_.view(sequence_, 0, tokens);
  }

  SelectInput select_input() const {
    SelectInput input;
    input.tokens = tokens_;
    input.heads = shape_.heads;
    input.kv_heads = shape_.kv_heads;
    input.head_dim = shape_.head_dim;
    input.q = q_.data();
    input.k = k_.data();
    input.scale = shape_.scale;
    return input;
  }
  PrefillAttentionParams prefill() {
    PrefillAttentionParams p;
    p.tokens = tokens_;
    p.heads = shape_.heads;
    p.q = q_.data();
    p.positions = positions_.data();
    p.kv = view_;
    p.scale = shape_.scale;
    p.out = out_.data();
    return p;
  }
  // The last token attends to all of them.
  DecodeAttentionParams decode() {
    DecodeAttentionParams p;
    p.sequences = 1;
    p.heads = shape_.heads;
    p.q = last_query();
    p.positions = &positions_.back();
    p.kv = &view_;
    p.scale = shape_.scale;
    p.out = out_.data();
    return p;
  }
  StepInput step() const {
    StepInput step;
    step.sequences = 1;
    step.heads = shape_.heads;
    step.kv_heads = shape_.kv_heads;
    step.head_dim = shape_.head_dim;
    step.q = last_query();
    step.positions = &positions_.back();
    step.kv = &view_;
    step.scale = shape_.scale;
    return step;
  }

 private:
  const float* last_query() const { return q_.data() + (tokens_ - 1) * shape_.heads * shape_.head_dim; }

  LayerShape shape_;
  std::int64_t tokens_;
  std::vector<std::int32_t> positions_;
  std::vector<float> q_;
  std::vector<float> k_;
  std::vector<float> out_;
  MemoryMeter meter_;
  KvCache cache_;
  int sequence_;
  KvView view_;
};

double timed(const std::function<void()>& work) {
  const auto start = HostClock::now();
  work();
  return seconds_since(start);
}

double measured_sparsity(const PrefillSelection& selection) {
  const PairCounts counts = count_pairs(selection);
  const auto sum = [](const std::vector<std::uint64_t>& pairs) {
    return static_cast<double>(std::accumulate(pairs.begin(), pairs.end(), std::uint64_t{0}));
  };
  return 1 - sum(counts.visible) / sum(counts.causal);
}

// The whole number in [least, most] whose sparsity, which falls as the number grows, is nearest to target.
std::int64_t nearest_budget(std::int64_t least, std::int64_t most, double target,
                            const std::function<double(std::int64_t)>& sparsity) {
  constexpr double kNearEnough = 0.001;
  std::int64_t best = least;
  double nearest = 2;
  while (least <= most) {
    const std::int64_t middle = least + (most - least) / 2;
    const double off = sparsity(middle) - target;
    if (std::abs(off) < nearest) {
      nearest = std::abs(off);
      best = middle;
    }
    if (nearest < kNearEnough) break;
    if (off > 0)
      least = middle + 1;
    else
      most = middle - 1;
  }
  return best;
}

// Settings of a prefill method whose sparsity on this layer is about target: by arithmetic where the method's
// budget decides it, else by bisection. vertical_slash keeps as many columns as diagonals; flexprefill has no
// floor, so that its threshold alone decides.
MethodSettings settings_at(std::string_view name, double target, const SelectInput& input) {
  MethodSettings settings(find_method(Phase::kPrefill, name), {});
  if (sparsity_of(settings, input.tokens, 1)) {
    for (const auto& [key, value] : solve_target(settings, input.tokens, 1, target).native)
      settings.set(key, value);
    return settings;
  }
  constexpr std::int64_t kSteps = 4096;  // of a threshold
  std::int64_t most = kSteps;
  std::function<void(std::int64_t)> apply;
  if (name == "vertical_slash") {
    most = input.tokens;
    apply = [&](std::int64_t n) {
      settings.set("columns", static_cast<double>(n));
      settings.set("diagonals", static_cast<double>(n));
    };
  } else {
    const std::string_view key = name == "flexprefill" ? "alpha" : "threshold";
    if (name == "flexprefill") settings.set("floor", 1);
    apply = [&settings, key](std::int64_t n) { settings.set(key, static_cast<double>(n) / kSteps); };
  }
  apply(nearest_budget(1, most, target, [&](std::int64_t n) {
    apply(n);
    return measured_sparsity(select_prefill(input, settings).selection);
  }));
  return settings;
}

json native_settings(const MethodSettings& settings) {
  json native;
  for (const MethodParameter& p : settings.method().parameters) {
    if (p.whole)
      native[p.name] = settings.whole(p.name);
    else
      native[p.name] = settings.real(p.name);
  }
  return native;
}

struct Case {
  std::string_view method;
  double target;
  double bar;
};

struct Times {
  std::vector<double> dense, select, attend, both;  // seconds
};

json timed_row(const Case& c, double measured, const Times& times, const json& native) {
  const double share = median_of(times.both) / median_of(times.dense);
  return {{"method", c.method},
          {"asked", c.target},
          {"sparsity", measured},
          {"dense_ms", median_of(times.dense) * 1e3},
          {"selection_ms", median_of(times.select) * 1e3},
          {"attention_ms", median_of(times.attend) * 1e3},
          {"share", share},
          {"bar", c.bar},
          {"met", share <= c.bar},
          {"native", native}};
}

// Rows of one sparsity; one dense run of each round serves them all.
void prefill_rows(const BenchOptions& options, std::span<const Case> cases, RandomLayer& layer, json& rows) {
  const SelectInput input = layer.select_input();
  const PrefillAttentionParams attention = layer.prefill();
  std::vector<MethodSettings> settings;
  for (const Case& c : cases) settings.push_back(settings_at(c.method, c.target, input));
  std::vector<Times> times(cases.size());
  std::vector<double> sparsity(cases.size());
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    const double dense = timed([&] { prefill_attention(attention); });
    for (std::size_t i = 0; i < cases.size(); ++i) {
      PrefillSelection selection;
      const double select = timed([&] { selection = select_prefill(input, settings[i]).selection; });
      const double attend = timed([&] { sparse_prefill_attention(attention, selection); });
      times[i].dense.push_back(dense);
      times[i].select.push_back(select);
      times[i].attend.push_back(attend);
      times[i].both.push_back(select + attend);
      if (repeat == 0) sparsity[i] = measured_sparsity(selection);
    }
  }
  for (std::size_t i = 0; i < cases.size(); ++i)
    rows.push_back(timed_row(cases[i], sparsity[i], times[i], native_settings(settings[i])));
}

json decode_row(const BenchOptions& options, const Case& c, RandomLayer& layer) {
  MethodSettings settings(find_method(Phase::kDecode, c.method), {});
  for (const auto& [key, value] : solve_target(settings, options.length, 1, c.target).native)
    settings.set(key, value);
  const DecodeAttentionParams attention = layer.decode();
  const StepInput step = layer.step();
  Times times;
  std::vector<HeadLists> pages;
  for (int repeat = -1; repeat < kDecodeRepeats * options.repeats; ++repeat) {  // the first one warms up
    const double dense = timed([&] { decode_attention(attention); });
    const double select = timed([&] { pages = select_pages(step, settings); });
    const double attend = timed([&] { sparse_decode_attention(attention, pages.data()); });
    if (repeat < 0) continue;
    times.dense.push_back(dense);
    times.select.push_back(select);
    times.attend.push_back(attend);
    times.both.push_back(select + attend);
  }
  std::int64_t read = 0;
  for (const std::int32_t page : pages.front().values)
    read += std::min<std::int64_t>(kPageTokens, options.length - page * kPageTokens);
  const double all = static_cast<double>(pages.front().heads) * static_cast<double>(options.length);
  return timed_row(c, 1 - static_cast<double>(read) / all, times, native_settings(settings));
}

std::uint64_t bytes_of(const UnitLists& lists, const KvView& shape) {
  std::uint64_t bytes = 0;
  for (const auto& list : lists) {
    for (const UnitId id : list) bytes += unit_bytes(KvUnit::of(id), shape);
  }
  return bytes;
}

// Sizes of units; nothing is held.
KvView unit_shape(const LayerShape& layer) {
  KvView shape;
  shape.kv_heads = layer.kv_heads;
  shape.head_dim = layer.head_dim;
  return shape;
}

// Bytes that all ranks fetch together, each as `units_of` says.
std::uint64_t fetched_bytes(const LayerShape& layer, const std::function<UnitLists(int rank)>& units_of) {
  std::uint64_t bytes = 0;
  for (int rank = 0; rank < kExchangeRanks; ++rank) bytes += bytes_of(units_of(rank), unit_shape(layer));
  return bytes;
}

std::uint64_t all_gather_bytes(const LayerShape& layer, const SequencePartition& partition) {
  return fetched_bytes(layer, [&](int rank) { return all_units(layer.kv_heads, partition, rank); });
}

double share_of(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

json exchange_row(const LayerShape& layer, std::string_view method, double target,
                  const PrefillSelection& selection, std::optional<double> bar, const json& native) {
  const SequencePartition partition(selection.length, kExchangeRanks);
  const std::uint64_t all = all_gather_bytes(layer, partition);
  const std::uint64_t needed = fetched_bytes(
      layer, [&](int rank) { return needed_units(selection, layer.kv_heads, partition, rank); });
  const double share = share_of(needed, all);
  json row = {{"method", method}, {"asked", target},  {"sparsity", measured_sparsity(selection)},
              {"bytes", needed},  {"all_bytes", all}, {"share", share},
              {"data", "random"}, {"native", native}};
  if (bar) {
    row["bar"] = *bar;
    row["met"] = share <= *bar;
  }
  return row;
}

// The first `columns` of a random order of all positions, ascending; another order for each head. A longer
// choice contains a shorter one, so that sparsity falls as the number grows.
std::vector<std::vector<std::int32_t>> random_columns(int heads, std::int64_t length, std::int64_t columns) {
  std::vector<std::vector<std::int32_t>> chosen;
  for (int head = 0; head < heads; ++head) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(length));
    std::iota(order.begin(), order.end(), 0);
    CounterRng draws(1, 100 + static_cast<std::uint64_t>(head));
    for (std::int64_t i = 0; i < columns; ++i) {
      const auto j = i + static_cast<std::int64_t>(draws.below(static_cast<std::uint64_t>(length - i)));
      std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(j)]);
    }
    order.resize(static_cast<std::size_t>(columns));
    std::sort(order.begin(), order.end());
    chosen.push_back(std::move(order));
  }
  return chosen;
}

// vertical_slash with every diagonal near the main one: the `near` nearest, and as many random columns as the
// target leaves room for.
json near_diagonals_row(const LayerShape& layer, std::int64_t length, std::int64_t near, double target,
                        double bar) {
  near = std::min(near, std::max<std::int64_t>(1, length / 32));
  std::vector<std::int32_t> band(static_cast<std::size_t>(near));
  std::iota(band.begin(), band.end(), 0);
  const std::vector<std::vector<std::int32_t>> diagonals(static_cast<std::size_t>(layer.heads), band);
  const auto selection_of = [&](std::int64_t columns) {
    return select_diagonals(length, false, random_columns(layer.heads, length, columns), diagonals);
  };
  const std::int64_t columns =
      nearest_budget(0, length, target, [&](std::int64_t n) { return measured_sparsity(selection_of(n)); });
  json row = exchange_row(layer, "vertical_slash", target, selection_of(columns), bar,
                          {{"columns", columns}, {"diagonals", near}});
  row["data"] = fmt::format("constructed: diagonals 0 to {}, columns at random", near - 1);
  return row;
}

json layer_json(const BenchOptions& options, const LayerShape& shape) {
  return {{"length", options.length},
          {"heads", shape.heads},
          {"kv_heads", shape.kv_heads},
          {"head_dim", shape.head_dim}};
}

}  // namespace

json bench_sparse(const BenchOptions& options) {
  const LayerShape shape = layer_shape(options);
  RandomLayer layer(shape, options.length);
  prefill_attention(layer.prefill());  // warm-up: first touch, thread pools
  json result = layer_json(options, shape);
  json& rows = result["rows"] = json::array();
  constexpr Case kPrefill[][2] = {
      {{"block_sparse", 0.5, 0.62}, {"vertical_slash", 0.5, 0.70}},
      {{"block_sparse", 0.9, 0.16}, {"vertical_slash", 0.9, 0.22}},
      {{"block_sparse", 0.95, 0.10}, {"vertical_slash", 0.95, 0.15}},
  };
  for (const auto& cases : kPrefill) prefill_rows(options, cases, layer, rows);
  rows.push_back(decode_row(options, {"quest", 0.95, 0.20}, layer));
  return result;
}

json bench_exchange(const BenchOptions& options) {
  const LayerShape shape = layer_shape(options);
  const RandomLayer layer(shape, options.length);
  const SelectInput input = layer.select_input();
  json result = layer_json(options, shape);
  result["sp"] = kExchangeRanks;
  const SequencePartition partition(options.length, kExchangeRanks);
  // What dense attention needs under the causal mask: no row can need more.
  result["dense_share"] = share_of(
      fetched_bytes(shape, [&](int rank) { return dense_units(shape.kv_heads, partition, rank, 0); }),
      all_gather_bytes(shape, partition));
  result["note"] =
      "rows of random data mean little until trained models run: Gaussian queries and keys have no structure "
      "that a selection could follow";
  json& rows = result["rows"] = json::array();
  const auto add_method = [&](std::string_view name, double target, std::optional<double> bar) {
    const MethodSettings settings = settings_at(name, target, input);
    rows.push_back(exchange_row(shape, name, target, select_prefill(input, settings).selection, bar,
                                native_settings(settings)));
  };
  add_method("streaming", 0.95, 0.10);
  rows.back()["data"] = "any: the method reads none";
  for (const std::int64_t near : {kNearDiagonals, kFewDiagonals})
    rows.push_back(near_diagonals_row(shape, options.length, near, 0.9, 0.25));
  for (const Method& method : all_methods()) {
    if (method.phase == Phase::kPrefill && method.unit != SelectUnit::kAll) add_method(method.name, 0.9, {});
  }
  return result;
}

}  // namespace tessera
