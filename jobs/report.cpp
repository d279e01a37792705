#include "jobs/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "io/json.hpp"
#include "jobs/attention_options.hpp"
#include "jobs/attention_setup.hpp"
#include "jobs/report_table.hpp"
#include "jobs/text_output.hpp"
#include "jobs/trace_source.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

using nlohmann::json;

constexpr std::string_view kDense = "dense";

// ---- methods -----------------------------------------------------------------------------------

// nullptr for a method that this build does not know: a trace may come from another.
const Method* known_method(Phase phase, std::string_view name) {
  for (const Method& method : all_methods()) {
    if (method.phase == phase && method.name == name) return &method;
  }
  return nullptr;
}

// The value of a parameter that nobody has to be told.
double usual_value(const Method& method, const MethodParameter& parameter, std::string_view task) {
  if (parameter.name == "window" && method.unit == SelectUnit::kColumnsAndDiagonals) {
    return static_cast<double>(estimate_window(task));
  }
  return parameter.fallback;
}

// "quest tokens=1024". `budget` is the point's budget_json, from the place `where`.
std::string method_text(Phase phase, const std::string& name, std::string_view task, const json& budget,
                        const std::string& where) {
  const std::string path = fmt::format("{}.native", name_of(phase));
  if (json_find(budget, path) == nullptr) return name;
  const json& native = json_object(budget, path.c_str(), where);
  for (const auto& [key, value] : native.items()) {
    if (!value.is_number()) throw_json_field(where, path + "." + key, value, "a number");
  }
  const Method* method = known_method(phase, name);
  std::string text = name;
  const auto add = [&text](std::string_view parameter, const json& value) {
    text += fmt::format(" {}={}", parameter, value.dump());
  };
  if (method == nullptr) {
    for (const auto& [key, value] : native.items()) add(key, value);
    return text;
  }
  for (const MethodParameter& parameter : method->parameters) {
    const auto value = native.find(parameter.name);
    if (value == native.end()) continue;
    if (is_budget(*method, parameter.name) || value->get<double>() != usual_value(*method, parameter, task)) {
      add(parameter.name, *value);
    }
  }
  return text;
}

std::string layers_text(const json& budget, const std::string& where) {
  if (json_find(budget, "dense_layers") == nullptr) return "";
  const json& layers = json_array(budget, "dense_layers", where);
  std::string text;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::string path = fmt::format("dense_layers.{}", i);
    text += fmt::format("{}{}", i == 0 ? "" : ",", json_integer(budget, path.c_str(), where, 0, 1 << 20));
  }
  return text;
}

void describe_methods(ReportRow& row) {
  const std::string where = fmt::format("{}: points/budget_json: row {}", row.path, row.point);
  const json budget = parse_json(row.info.budget_json, where);
  row.prefill = method_text(Phase::kPrefill, row.info.prefill, row.info.task, budget, where);
  row.decode = method_text(Phase::kDecode, row.info.decode, row.info.task, budget, where);
  row.dense_layers = layers_text(budget, where);
  row.share_group = json_bool_or(budget, "share_group", where, false);
}

bool is_dense(const PointInfo& point) {
  return point.prefill == kDense && point.decode == kDense;
}

// ---- samples -----------------------------------------------------------------------------------

bool has_score(const SampleRecord& sample) {
  return sample.error.empty() && !std::isnan(sample.score);
}

void summarise(const std::vector<const SampleRecord*>& samples, ReportRow& row) {
  std::vector<double> scores;
  row.samples = static_cast<std::int64_t>(samples.size());
  for (const SampleRecord* sample : samples) {
    row.metric = sample->metric;
    row.failed += !sample->error.empty();
    row.format_errors += sample->error.empty() && !sample->format_ok;
    if (has_score(*sample)) scores.push_back(sample->score);
  }
  row.score = mean_interval(scores);

  const auto mean = [&samples](double SampleRecord::*member) {
    std::vector<double> values;
    for (const SampleRecord* sample : samples) values.push_back(sample->*member);
    return mean_of_known(values);
  };
  row.prefill_sparsity = mean(&SampleRecord::prefill_sparsity);
  row.decode_sparsity = mean(&SampleRecord::decode_sparsity);
  row.prefill_s = mean(&SampleRecord::prefill_s);
  row.tpot_s = mean(&SampleRecord::tpot_s);
}

// ---- bytes between ranks -----------------------------------------------------------------------

// By attempt.
std::map<std::int64_t, std::int64_t> sequence_ranks(const TraceTables& tables) {
  std::map<std::int64_t, std::int64_t> ranks;
  for (const AttemptRank& row : tables.attempts) {
    std::int64_t& most = ranks[row.attempt];
    most = std::max(most, row.sp + 1);
  }
  return ranks;
}

// Reads the arrays of the samples that several ranks shared, one sample at a time.
void sum_exchange(const ReportSource& source, const std::vector<std::size_t>& samples,
                  const std::map<std::int64_t, std::int64_t>& sequence_ranks, ReportRow& row) {
  double selected = 0, needed = 0, selecting = 0, full = 0;
  const auto add = [](double& sum, const std::vector<std::uint64_t>& layers) {
    for (const std::uint64_t bytes : layers) sum += static_cast<double>(bytes);
  };
  for (const std::size_t index : samples) {
    const auto ranks = sequence_ranks.find(source.tables->samples[index].attempt);
    if (ranks == sequence_ranks.end() || ranks->second <= 1) continue;
    for (const RankTimes& rank : source.load(index).ranks) {
      add(selected, rank.bytes_selected);
      add(needed, rank.bytes_needed);
      add(selecting, rank.bytes_selecting);
      add(full, rank.bytes_full);
    }
  }
  if (full == 0) return;
  row.selected_share = selected / full;
  row.needed_share = needed / full;
  row.selecting_share = selecting / full;
}

// ---- change from dense -------------------------------------------------------------------------

// A row with its samples, while rows are compared.
struct PointSamples {
  ReportRow row;
  std::vector<const SampleRecord*> samples;
};

using Question = std::tuple<std::string, std::string, std::int64_t, std::int64_t>;
Question question_of(const PointInfo& point) {
  return {point.model, point.task, point.length, point.seed};
}

bool same_number_formats(const PointInfo& a, const PointInfo& b) {
  return a.weights_dtype == b.weights_dtype && a.kv_dtype == b.kv_dtype;
}

// Scores of `point` less those of `dense`, of the samples that both answered. A sample is the same when its
// prompt is: the settings of a task are not part of the question.
std::vector<double> paired_differences(const PointSamples& point, const PointSamples& dense) {
  std::map<std::int64_t, const SampleRecord*> by_number;
  for (const SampleRecord* sample : dense.samples) by_number[sample->sample] = sample;
  std::vector<double> differences;
  for (const SampleRecord* sample : point.samples) {
    const auto other = by_number.find(sample->sample);
    if (other == by_number.end() || other->second->prompt_hash != sample->prompt_hash) continue;
    if (has_score(*sample) && has_score(*other->second)) {
      differences.push_back(sample->score - other->second->score);
    }
  }
  return differences;
}

// Of several dense points the one in the same number formats, then the one that shares the most samples.
MeanInterval change_from(const std::vector<const PointSamples*>& dense_points, const PointSamples& point) {
  std::vector<double> best;
  bool best_has_formats = false;
  for (const PointSamples* dense : dense_points) {
    std::vector<double> differences = paired_differences(point, *dense);
    if (differences.empty()) continue;
    const bool has_formats = same_number_formats(point.row.info, dense->row.info);
    if (std::pair(has_formats, differences.size()) > std::pair(best_has_formats, best.size())) {
      best = std::move(differences);
      best_has_formats = has_formats;
    }
  }
  return difference_interval(best);
}

void compare_with_dense(std::vector<PointSamples>& points) {
  std::map<Question, std::vector<const PointSamples*>> dense;
  for (const PointSamples& point : points) {
    if (is_dense(point.row.info)) dense[question_of(point.row.info)].push_back(&point);
  }
  for (PointSamples& point : points) {
    point.row.change = difference_interval({});
    const auto found = dense.find(question_of(point.row.info));
    if (!is_dense(point.row.info) && found != dense.end())
      point.row.change = change_from(found->second, point);
  }
}

// ---- rows --------------------------------------------------------------------------------------

// Dense methods come first, unknown sparsities last.
auto place_of(const ReportRow& row) {
  const PointInfo& info = row.info;
  const auto known = [](double sparsity) { return std::isnan(sparsity) ? 2.0 : sparsity; };
  return std::tuple(std::string_view(info.task), info.length, std::string_view(info.model),
                    info.prefill != kDense, std::string_view(info.prefill), info.decode != kDense,
                    std::string_view(info.decode), known(row.prefill_sparsity), known(row.decode_sparsity),
                    info.seed);
}

void add_points(const ReportSource& source, std::vector<PointSamples>& points) {
  const TraceTables& tables = *source.tables;
  std::vector<std::vector<std::size_t>> samples(tables.points.size());
  for (std::size_t i = 0; i < tables.samples.size(); ++i) {
    samples.at(static_cast<std::size_t>(tables.samples[i].point)).push_back(i);
  }
  const auto ranks = sequence_ranks(tables);
  for (std::size_t p = 0; p < tables.points.size(); ++p) {
    PointSamples& point = points.emplace_back();
    point.row.path = source.path;
    point.row.point = static_cast<std::int64_t>(p);
    point.row.info = tables.points[p];
    for (const std::size_t i : samples[p]) point.samples.push_back(&tables.samples[i]);
    describe_methods(point.row);
    summarise(point.samples, point.row);
    sum_exchange(source, samples[p], ranks, point.row);
  }
}

// A trace and its own journal would count every sample twice.
void check_runs_differ(std::span<const ReportSource> sources) {
  std::map<std::string, std::string> paths;  // by run
  for (const ReportSource& source : sources) {
    const auto [other, is_new] = paths.emplace(source.tables->run_id, source.path);
    if (!is_new) {
      throw UsageError("report: {} and {} are both of run {}; name one of them", other->second, source.path,
                       source.tables->run_id);
    }
  }
}

}  // namespace

std::vector<ReportRow> report_rows(std::span<const ReportSource> sources) {
  check_runs_differ(sources);
  std::vector<PointSamples> points;
  for (const ReportSource& source : sources) add_points(source, points);
  compare_with_dense(points);

  std::vector<ReportRow> rows;
  for (PointSamples& point : points) rows.push_back(std::move(point.row));
  std::stable_sort(rows.begin(), rows.end(),
                   [](const ReportRow& a, const ReportRow& b) { return place_of(a) < place_of(b); });
  return rows;
}

int run_report(const ReportOptions& options, std::FILE* out) {
  const ReportFormat format = parse_report_format(options.format);
  std::vector<std::unique_ptr<TraceSource>> opened;
  std::vector<ReportSource> sources;
  for (const std::string& path : options.files) {
    opened.push_back(open_source(path));
    sources.push_back({path, &opened.back()->tables(), opened.back()->load});
  }
  print_text(out, report_text(report_rows(sources), format));
  flush_text(out);
  return 0;
}

}  // namespace tessera
