#include "attention/budget.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "runtime/core/error.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera {
namespace {

// Pairs or tokens; exact, since S² / 2 of a million tokens fits easily.
struct Counts {
  std::int64_t visible = 0;
  std::int64_t dense = 0;

  double sparsity() const {
    return dense == 0 ? 0 : static_cast<double>(dense - visible) / static_cast<double>(dense);
  }
};

std::int64_t causal_pairs_of(std::int64_t rows) {
  return rows * (rows + 1) / 2;
}

// First, diagonal and sub-diagonal block are forced, inside the budget.
constexpr std::int64_t kForcedBlocks = 3;

Counts block_sparse_counts(std::int64_t length, std::int64_t edge, std::int64_t blocks) {
  Counts counts{0, causal_pairs_of(length)};
  for (std::int64_t row = 0; row * edge < length; ++row) {
    const std::int64_t rows = std::min(edge, length - row * edge);
    const std::int64_t kept = std::min(row + 1, std::max(blocks, kForcedBlocks));
    counts.visible += (kept - 1) * edge * rows + causal_pairs_of(rows);
  }
  return counts;
}

Counts streaming_prefill_counts(std::int64_t length, std::int64_t sinks, std::int64_t window) {
  Counts counts{0, causal_pairs_of(length)};
  for (std::int64_t first = 0; first < length; first += kQueryBlockRows) {
    const std::int64_t oldest = std::max<std::int64_t>(0, first - window + 1) / kPageTokens * kPageTokens;
    const std::int64_t rows = std::min<std::int64_t>(kQueryBlockRows, length - first);
    // Row first + i sees oldest … first + i, and the sinks before that.
    counts.visible += rows * (first - oldest + std::min(sinks, oldest)) + causal_pairs_of(rows);
  }
  return counts;
}

// read(cache): tokens read at a step whose dense cache holds `cache`.
Counts decode_counts(std::int64_t length, std::int64_t output_tokens,
                     const std::function<std::int64_t(std::int64_t)>& read) {
  Counts counts;
  for (std::int64_t step = 1; step <= std::max<std::int64_t>(1, output_tokens - 1); ++step) {
    counts.visible += read(length + step);
    counts.dense += length + step;
  }
  return counts;
}

std::int64_t quest_read(std::int64_t cache, std::int64_t tokens) {
  const std::int64_t current = (cache - 1) / kPageTokens;
  return std::min(tokens / kPageTokens, current) * kPageTokens + cache - current * kPageTokens;
}

// What a budget is made of, for the methods that arithmetic solves.
struct Solvable {
  std::string_view name;
  std::int64_t step = 1;  // the budget is a multiple of this
  std::int64_t least = 1;
  std::int64_t most = 1;  // everything is visible
  std::function<Counts(std::int64_t budget)> counts;
};

const MethodParameter& parameter_of(const Method& method, std::string_view name) {
  for (const MethodParameter& parameter : method.parameters) {
    if (parameter.name == name) return parameter;
  }
  throw InternalError("method {} has no parameter {}", method.name, name);
}

std::optional<Solvable> solvable(const MethodSettings& settings, std::int64_t length,
                                 std::int64_t output_tokens) {
  const Method& method = settings.method();
  Solvable s;
  if (method.importance == Importance::kPooledBlocks) {
    const std::int64_t edge = settings.whole("edge");
    s.name = "blocks";
    s.least = kForcedBlocks;
    s.most = ceil_div(length, edge);
    s.counts = [=](std::int64_t budget) { return block_sparse_counts(length, edge, budget); };
  } else if (method.unit == SelectUnit::kLocalWindow) {
    const std::int64_t sinks = settings.whole("sinks");
    s.name = "window";
    s.most = length + std::max<std::int64_t>(1, output_tokens);
    if (method.phase == Phase::kPrefill) {
      s.counts = [=](std::int64_t budget) { return streaming_prefill_counts(length, sinks, budget); };
    } else {
      s.counts = [=](std::int64_t budget) {
        return decode_counts(length, output_tokens,
                             [=](std::int64_t cache) { return std::min(cache, sinks + budget); });
      };
    }
  } else if (method.unit == SelectUnit::kTokens) {
    s.name = "tokens";
    s.least = settings.whole("recent") + settings.whole("sinks");
    s.most = length;
    s.counts = [=, forced = s.least](std::int64_t budget) {
      const std::int64_t evicted = length - std::min(length, std::max(budget, forced));
      return decode_counts(length, output_tokens, [=](std::int64_t cache) { return cache - evicted; });
    };
  } else if (method.unit == SelectUnit::kPages && method.budget == BudgetRule::kUniform) {
    s.name = "tokens";
    s.step = kPageTokens;
    s.least = kPageTokens;
    s.most = ceil_div(length + std::max<std::int64_t>(1, output_tokens), kPageTokens) * kPageTokens;
    s.counts = [=](std::int64_t budget) {
      return decode_counts(length, output_tokens,
                           [=](std::int64_t cache) { return quest_read(cache, budget); });
    };
  } else {
    return std::nullopt;
  }
  const MethodParameter& parameter = parameter_of(method, s.name);
  s.least = std::max(s.least, static_cast<std::int64_t>(parameter.least));
  s.most = std::max(s.least, std::min(s.most, static_cast<std::int64_t>(parameter.most)));
  return s;
}

// The largest multiple of step in [least, most] that keeps the sparsity at least target, or least.
std::int64_t largest_budget(const Solvable& s, double target) {
  std::int64_t low = ceil_div(s.least, s.step);
  std::int64_t high = std::max(low, s.most / s.step);
  while (low < high) {
    const std::int64_t middle = low + (high - low + 1) / 2;
    if (s.counts(middle * s.step).sparsity() >= target) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low * s.step;
}

}  // namespace

std::optional<double> sparsity_of(const MethodSettings& settings, std::int64_t length,
                                  std::int64_t output_tokens) {
  const auto s = solvable(settings, length, output_tokens);
  if (!s) return std::nullopt;
  return s->counts(settings.whole(s->name)).sparsity();
}

BudgetResult solve_target(const MethodSettings& settings, std::int64_t length, std::int64_t output_tokens,
                          double target) {
  const Method& method = settings.method();
  const char* option = method.phase == Phase::kPrefill ? "--prefill-sparsity" : "--decode-sparsity";
  if (!(target >= 0 && target < 1)) throw UsageError("{}={}: must be at least 0 and below 1", option, target);
  const auto s = solvable(settings, length, output_tokens);
  if (!s)
    throw UsageError("{}={}: {} has no budget that arithmetic gives; calibrate it", option, target,
                     method.name);

  const std::int64_t budget = largest_budget(*s, target);
  BudgetResult result;
  result.native[std::string(s->name)] = static_cast<double>(budget);
  result.expected_sparsity = s->counts(budget).sparsity();
  if (result.expected_sparsity < target) {
    result.note = fmt::format(
        "{} cannot reach a sparsity of {} at length {}: its forced units leave {:.4f} at most ({}.{}={})",
        method.name, target, length, result.expected_sparsity, method.name, s->name, budget);
  }
  return result;
}

}  // namespace tessera
