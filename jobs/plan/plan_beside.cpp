#include "jobs/plan/plan_beside.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "jobs/bench_table.hpp"

namespace tessera {
namespace {

std::string size_text(double bytes) {
  return bytes < 1e9 ? fmt::format("{:.1f} MB", bytes / 1e6) : fmt::format("{:.2f} GB", bytes / 1e9);
}

std::string time_text(double seconds) {
  return seconds < 1 ? fmt::format("{:.3f} ms", seconds * 1e3) : fmt::format("{:.3f} s", seconds);
}

std::string beside(const std::string& planned, const std::string& measured, double ratio) {
  return fmt::format("{}, measured {} ({:+.1f} %)", planned, measured, 100 * (ratio - 1));
}

std::string memory_line(const GridPlan& plan, const RunMeasures& measured) {
  struct Part {
    const char* name;
    double planned;
    std::int64_t measured;
  };
  std::string text = "plan: memory of a rank:";
  const char* gap = " ";
  for (const Part& part :
       {Part{"weights", plan.weights, measured.weights}, Part{"KV", plan.kv_used, measured.kv},
        Part{"workspace", plan.workspace, measured.workspace}}) {
    const double bytes = static_cast<double>(part.measured);
    text += fmt::format("{}{} {}", gap, part.name,
                        beside(size_text(part.planned), size_text(bytes), bytes / part.planned));
    gap = "; ";
  }
  return text + "\n";
}

}  // namespace

void RunMeasures::add(const Completion& completion) {
  prefill_s.push_back(completion.prefill_s);
  if (!std::isnan(completion.per_token_s)) token_s.push_back(completion.per_token_s);
  for (const RankReport& rank : completion.ranks) {
    weights = std::max(weights, rank.peak_weights);
    kv = std::max(kv, rank.peak_kv);
    workspace = std::max(workspace, rank.peak_workspace);
  }
}

std::string beside_text(const GridPlan& plan, const Machine& machine, const RunMeasures& measured) {
  if (measured.prefill_s.empty()) return "";
  std::string text = memory_line(plan, measured);
  if (std::isnan(plan.prefill_s) || std::isnan(plan.step_s)) return text;
  const double prefill = median_of(measured.prefill_s);
  text += fmt::format("plan ({}): prefill {}", machine.name,
                      beside(time_text(plan.prefill_s), time_text(prefill), prefill / plan.prefill_s));
  if (!measured.token_s.empty()) {
    const double token = median_of(measured.token_s);
    text +=
        fmt::format("; a token {}", beside(time_text(plan.step_s), time_text(token), token / plan.step_s));
  }
  return text + "\n";
}

}  // namespace tessera
