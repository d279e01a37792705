#include "jobs/plan/plan_table.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include <fmt/format.h>

#include "jobs/attention_options.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

// ---- one number --------------------------------------------------------------------------------

// "18.4 PFLOP", "43.0 GB": three digits.
std::string with_prefix(double value, const char* unit) {
  constexpr std::array kPrefixes = {"", "k", "M", "G", "T", "P", "E", "Z"};
  std::size_t prefix = 0;
  while (value >= 999.5 && prefix + 1 < kPrefixes.size()) {
    value /= 1000;
    ++prefix;
  }
  const int digits = value >= 99.95 || (prefix == 0 && value == std::floor(value)) ? 0
                     : value >= 9.995                                              ? 1
                                                                                   : 2;
  return fmt::format("{:.{}f} {}{}", value, digits, kPrefixes[prefix], unit);
}

std::string bytes(double count) {
  return with_prefix(count, "B");
}

std::string scaled(double seconds, double scale) {
  return std::isnan(seconds) ? "" : fmt::format("{:.3f}", seconds * scale);
}

std::string decode_text(const DecodeGrid& decode) {
  std::string text = fmt::format("{} wide, KV {} heads", decode.weights, decode.kv_heads);
  if (decode.kv_tokens > 1) text += fmt::format(" x {} tokens", decode.kv_tokens);
  return text;
}

// ---- columns -----------------------------------------------------------------------------------

struct Number {
  const char* name;  // with its unit; csv and json
  double (*value)(const GridPlan&);
};
constexpr Number kNumbers[] = {
    {"tp", [](const GridPlan& g) { return double(g.shape.tp); }},
    {"sp", [](const GridPlan& g) { return double(g.shape.sp); }},
    {"dp", [](const GridPlan& g) { return double(g.shape.dp); }},
    {"decode_ranks", [](const GridPlan& g) { return double(g.decode.weights); }},
    {"decode_kv_heads_ranks", [](const GridPlan& g) { return double(g.decode.kv_heads); }},
    {"decode_kv_tokens_ranks", [](const GridPlan& g) { return double(g.decode.kv_tokens); }},
    {"fits", [](const GridPlan& g) { return double(g.fits()); }},
    {"weights_bytes", [](const GridPlan& g) { return g.weights; }},
    {"kv_bytes", [](const GridPlan& g) { return g.kv; }},
    {"kv_used_bytes", [](const GridPlan& g) { return g.kv_used; }},
    {"workspace_bytes", [](const GridPlan& g) { return g.workspace; }},
    {"memory_bytes", [](const GridPlan& g) { return g.memory(); }},
    {"missing_bytes", [](const GridPlan& g) { return std::max(0.0, g.missing); }},
    {"prefill_linear_flop", [](const GridPlan& g) { return g.flops_linear; }},
    {"prefill_attention_flop", [](const GridPlan& g) { return g.flops_attention; }},
    {"prefill_estimate_flop", [](const GridPlan& g) { return g.flops_estimate; }},
    {"prefill_needed_bytes", [](const GridPlan& g) { return g.bytes_needed; }},
    {"prefill_all_gather_bytes", [](const GridPlan& g) { return g.bytes_full; }},
    {"prefill_exchanged_bytes", [](const GridPlan& g) { return g.bytes_exchanged; }},
    {"prefill_reshard_bytes", [](const GridPlan& g) { return g.bytes_reshard; }},
    {"prefill_all_reduce_bytes", [](const GridPlan& g) { return g.bytes_all_reduce; }},
    {"step_weights_bytes", [](const GridPlan& g) { return g.step_weights; }},
    {"step_kv_bytes", [](const GridPlan& g) { return g.step_kv; }},
    {"step_estimator_bytes", [](const GridPlan& g) { return g.step_estimator; }},
    {"step_exchanged_bytes", [](const GridPlan& g) { return g.step_exchanged; }},
    {"step_flop", [](const GridPlan& g) { return g.step_flops; }},
    {"prefill_linear_s", [](const GridPlan& g) { return g.linear_s; }},
    {"prefill_passes_s", [](const GridPlan& g) { return g.passes_s; }},
    {"prefill_attention_s", [](const GridPlan& g) { return g.attention_s; }},
    {"prefill_estimate_s", [](const GridPlan& g) { return g.estimate_s; }},
    {"prefill_exchange_s", [](const GridPlan& g) { return g.exchange_s; }},
    {"prefill_all_reduce_s", [](const GridPlan& g) { return g.all_reduce_s; }},
    {"prefill_s", [](const GridPlan& g) { return g.prefill_s; }},
    {"step_s", [](const GridPlan& g) { return g.step_s; }},
    {"sample_s", [](const GridPlan& g) { return g.sample_s; }},
};

struct Shown {
  const char* heading;
  std::string (*cell)(const GridPlan&);
};
constexpr Shown kShown[] = {
    {"tp x sp x dp",
     [](const GridPlan& g) { return fmt::format("{}x{}x{}", g.shape.tp, g.shape.sp, g.shape.dp); }},
    {"decode", [](const GridPlan& g) { return decode_text(g.decode); }},
    {"fits", [](const GridPlan& g) { return g.fits() ? "yes" : "no, by " + bytes(g.missing); }},
    {"weights", [](const GridPlan& g) { return bytes(g.weights); }},
    {"KV", [](const GridPlan& g) { return bytes(g.kv); }},
    {"workspace", [](const GridPlan& g) { return bytes(g.workspace); }},
    {"memory", [](const GridPlan& g) { return bytes(g.memory()); }},
    {"prefill s", [](const GridPlan& g) { return scaled(g.prefill_s, 1); }},
    {"ms per token", [](const GridPlan& g) { return scaled(g.step_s, 1e3); }},
    {"s per sample", [](const GridPlan& g) { return scaled(g.sample_s, 1); }},
    {"exchanged", [](const GridPlan& g) { return bytes(g.bytes_exchanged); }},
    {"all-gather", [](const GridPlan& g) { return bytes(g.bytes_full); }},
    {"all-reduce", [](const GridPlan& g) { return bytes(g.bytes_all_reduce); }},
    {"step weights", [](const GridPlan& g) { return bytes(g.step_weights); }},
    {"step KV", [](const GridPlan& g) { return bytes(g.step_kv); }},
    {"step estimator", [](const GridPlan& g) { return bytes(g.step_estimator); }},
};

// ---- heading -----------------------------------------------------------------------------------

struct Line {
  std::string name, value;
};

std::vector<Line> heading(const PlanReport& r) {
  const PlanProblem& p = *r.setup.problem;
  const SampleCost& cost = r.plan.cost;
  const Machine& m = r.machine;
  const auto of = [](std::uint64_t value, const char* unit) {
    return with_prefix(static_cast<double>(value), unit);
  };
  const double steps = static_cast<double>(p.decode_steps());
  const auto a_step = [&](double value, const char* unit) { return with_prefix(value / steps, unit); };
  std::vector<Line> lines = {
      {"model", fmt::format("{}: {} parameters, {} of weights, {} of KV a token", r.setup.model_name,
                            p.config.parameter_count(), with_prefix(r.plan.weight_bytes, "B"),
                            with_prefix(r.plan.kv_bytes_token, "B"))},
      {"rope", r.setup.rope},
      {"sample",
       fmt::format("{} tokens of prompt ({} of KV), {} of answer, batch {}, arithmetic {}, KV {}", p.length,
                   with_prefix(static_cast<double>(p.length) * r.plan.kv_bytes_token, "B"), p.output_tokens,
                   p.batch, name_of(p.dtype), name_of(p.kv_dtype))},
      {"prefill", r.setup.prefill},
      {"decode", r.setup.decode},
      {"prefill FLOP", fmt::format("linear {}, attention {}, estimation {}; by the study's formula {} in all",
                                   of(cost.flops_linear[0], "FLOP"), of(cost.flops_attention[0], "FLOP"),
                                   of(cost.flops_estimate[0], "FLOP"), of(cost.flops_paper[0], "FLOP"))},
      {"decode step",
       fmt::format("of one sequence: weights {}, KV {}, estimator {}", with_prefix(r.plan.weight_bytes, "B"),
                   a_step(static_cast<double>(cost.bytes_kv[1]), "B"),
                   a_step(static_cast<double>(cost.bytes_estimator[1]), "B"))},
  };
  std::string machine = m.name;
  const auto add = [&](double value, const char* unit, const char* what) {
    if (value > 0) machine += fmt::format(", {} {}", with_prefix(value, unit), what);
  };
  add(m.memory, "B", m.memory_is_shared ? "of memory for all ranks" : "of memory a rank");
  add(m.flops, "FLOP/s", "in products");
  add(m.attention.of(r.setup.problem->config.head_dim), "FLOP/s", "in attention");
  add(m.bandwidth, "B/s", "from memory");
  add(m.link_bandwidth, "B/s", "from other ranks");
  const auto add_latency = [&](double seconds, const char* what) {
    if (seconds > 0) machine += fmt::format(", {:.3g} us {}", seconds * 1e6, what);
  };
  add_latency(m.link_latency, "a collective");
  add_latency(m.layer_latency, "a layer of a decode step");
  lines.push_back({"machine", machine});
  return lines;
}

std::vector<std::string> notes(const PlanReport& r) {
  const PlanProblem& p = *r.setup.problem;
  std::vector<std::string> lines = r.setup.notes;
  bool any_sp = false;
  for (const GridPlan& grid : r.plan.grids) any_sp = any_sp || grid.shape.sp > 1;
  const Method& prefill = p.attention.prefill.method();
  if (any_sp && is_sparse(prefill) && prefill.unit != SelectUnit::kLocalWindow) {
    lines.push_back(
        "exchanged: rows of 64 queries and heads of a group are taken to choose their keys independently, so "
        "that a rank needs nearly all that dense attention would; choices that lie together need less");
  }
  if (!r.machine.has_rates()) {
    lines.push_back("times: not known without --flops and --bandwidth, or a --machine that has them");
  } else if (any_sp && r.machine.link_bandwidth == 0) {
    lines.push_back("times: where ranks exchange, not known without --link-bandwidth");
  } else {
    lines.push_back(
        "times: work at the machine's sustained rates, nothing hidden behind anything else; per token: a "
        "step of "
        "the batch; per sample: prefill and answer, over all ranks");
  }
  if (r.machine.has_rates() && r.machine.link_latency == 0)
    lines.push_back("times: the latency of collectives is not counted; --link-latency gives one");
  if (r.machine.decodes_by_heads)
    lines.push_back(
        "decode: keys and values go from tokens to heads once after prefill, where tp x sp divides the "
        "model");
  lines.push_back(
      "memory: KV is what is set aside for the worst; weights, KV and workspace are of the rank with most");
  return lines;
}

// ---- forms -------------------------------------------------------------------------------------

std::string table(const PlanReport& r, bool markdown) {
  std::vector<std::vector<std::string>> rows;
  std::vector<std::size_t> widths;
  std::vector<std::string> header;
  for (const Shown& column : kShown) header.emplace_back(column.heading);
  rows.push_back(header);
  for (const GridPlan& grid : r.plan.grids) {
    std::vector<std::string> row;
    for (const Shown& column : kShown) row.push_back(column.cell(grid));
    rows.push_back(std::move(row));
  }
  for (std::size_t c = 0; c < header.size(); ++c) {
    std::size_t width = 0;
    for (const auto& row : rows) width = std::max(width, row[c].size());
    widths.push_back(width);
  }
  std::string text;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::string line = markdown ? "|" : "";
    for (std::size_t c = 0; c < header.size(); ++c) {
      const bool left = c < 3;
      const std::string cell =
          left ? fmt::format("{:<{}}", rows[i][c], widths[c]) : fmt::format("{:>{}}", rows[i][c], widths[c]);
      line += markdown ? fmt::format(" {} |", rows[i][c]) : (c > 0 ? "  " : "") + cell;
    }
    while (!markdown && line.ends_with(' ')) line.pop_back();
    text += line + "\n";
    if (!markdown || i > 0) continue;
    text += "|";
    for (std::size_t c = 0; c < header.size(); ++c) text += c < 3 ? " --- |" : " ---: |";
    text += "\n";
  }
  return text;
}

std::string readable(const PlanReport& r, bool markdown) {
  std::string text;
  for (const Line& line : heading(r)) {
    text += markdown ? fmt::format("- **{}**: {}\n", line.name, line.value)
                     : fmt::format("{:<14}{}\n", line.name, line.value);
  }
  text += "\n" + table(r, markdown) + "\n";
  for (const std::string& note : notes(r)) text += fmt::format("{}{}\n", markdown ? "- " : "", note);
  return text;
}

std::string csv(const PlanReport& r) {
  std::string text;
  for (const Number& number : kNumbers) text += fmt::format("{}{}", text.empty() ? "" : ",", number.name);
  text += "\n";
  for (const GridPlan& grid : r.plan.grids) {
    bool first = true;
    for (const Number& number : kNumbers) {
      const double value = number.value(grid);
      text += fmt::format("{}{}", first ? "" : ",", std::isnan(value) ? "" : fmt::format("{}", value));
      first = false;
    }
    text += "\n";
  }
  return text;
}

nlohmann::json by_phase(const std::vector<std::uint64_t>& values) {
  return {{"prefill", values[0]}, {"decode", values[1]}};
}

// Decode figures of a sample are of all its steps, as in the trace; those of a grid are of one.
std::string json(const PlanReport& r) {
  const PlanProblem& p = *r.setup.problem;
  const SampleCost& c = r.plan.cost;
  const Machine& m = r.machine;
  nlohmann::json root;
  root["model"] = {{"name", r.setup.model_name},
                   {"parameters", p.config.parameter_count()},
                   {"weights_bytes", r.plan.weight_bytes},
                   {"kv_bytes_a_token", r.plan.kv_bytes_token},
                   {"rope", r.setup.rope}};
  root["run"] = {{"length", p.length},
                 {"output_tokens", p.output_tokens},
                 {"batch", p.batch},
                 {"ranks", p.ranks},
                 {"dtype", name_of(p.dtype)},
                 {"kv_dtype", name_of(p.kv_dtype)},
                 {"prefill", p.attention.prefill.method().name},
                 {"decode", p.attention.decode.method().name}};
  for (const auto& [name, sparsity] :
       {std::pair{"prefill_sparsity", p.prefill}, {"decode_sparsity", p.decode}})
    root["run"][name] = {{"value", sparsity.value}, {"source", name_of(sparsity.source)}};
  root["machine"] = {{"name", m.name},
                     {"memory_bytes", m.memory},
                     {"memory_is_shared", m.memory_is_shared},
                     {"flop_per_s", m.flops},
                     {"attention_flop_per_s", m.attention.of(p.config.head_dim)},
                     {"bytes_per_s", m.bandwidth},
                     {"link_bytes_per_s", m.link_bandwidth},
                     {"collective_s", m.link_latency},
                     {"layer_s", m.layer_latency}};
  root["sample"] = {
      {"flops_linear", by_phase(c.flops_linear)},      {"flops_attention", by_phase(c.flops_attention)},
      {"flops_estimate", by_phase(c.flops_estimate)},  {"flops_paper", by_phase(c.flops_paper)},
      {"bytes_weights", by_phase(c.bytes_weights)},    {"bytes_kv", by_phase(c.bytes_kv)},
      {"bytes_estimator", by_phase(c.bytes_estimator)}};
  root["grids"] = nlohmann::json::array();
  for (const GridPlan& grid : r.plan.grids) {
    nlohmann::json row;
    for (const Number& number : kNumbers) {
      const double value = number.value(grid);
      row[number.name] = std::isnan(value) ? nlohmann::json() : nlohmann::json(value);
    }
    root["grids"].push_back(std::move(row));
  }
  root["notes"] = notes(r);
  return root.dump(2) + "\n";
}

}  // namespace

std::string plan_text(const PlanReport& report, const std::string& format) {
  if (format == "text") return readable(report, false);
  if (format == "markdown") return readable(report, true);
  if (format == "csv") return csv(report);
  if (format == "json") return json(report);
  throw InternalError("internal error: the format {} of a plan is not handled", format);
}

}  // namespace tessera
