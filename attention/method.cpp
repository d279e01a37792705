#include "attention/method.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "runtime/core/error.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera {
namespace {

constexpr double kMostTokens = 1 << 24;

// Least values of a budget are 1 and not the number of forced units: where a budget is smaller, forced units
// compete by index.
constexpr std::array kStreamingParameters = {
    MethodParameter{"sinks", 4, 0, kMostTokens, true, "first tokens that every query sees"},
    MethodParameter{"window", 1024, 1, kMostTokens, true, "newest tokens that a query sees, itself included"},
};
constexpr std::array kVerticalSlashParameters = {
    MethodParameter{"columns", 1024, 1, kMostTokens, true, "columns a head keeps"},
    MethodParameter{"diagonals", 1024, 1, kMostTokens, true, "diagonals a head keeps"},
    MethodParameter{"window", 256, 1, kMostTokens, true, "last queries whose softmax is the estimate"},
};
constexpr std::array kBlockSparseParameters = {
    MethodParameter{"blocks", 64, 1, kMostTokens, true, "blocks a row of queries keeps"},
    MethodParameter{"edge", 64, 16, 128, true, "tokens a block: 16, 32, 64 or 128"},
};
constexpr std::array kFlexPrefillParameters = {
    MethodParameter{"alpha", 0.9, 0, 1, false, "share of the estimate that columns, and diagonals, cover"},
    MethodParameter{"floor", 512, 1, kMostTokens, true, "least number of columns, and of diagonals"},
    MethodParameter{"window", 256, 1, kMostTokens, true, "last queries whose softmax is the estimate"},
};
constexpr std::array kXAttentionParameters = {
    MethodParameter{"threshold", 0.9, 0, 1, false, "share of the estimate that the blocks of a row cover"},
    MethodParameter{"edge", 128, 64, 128, true, "tokens a block: 64 or 128"},
    MethodParameter{"stride", 8, 2, 64, true, "tokens between antidiagonals: 2, 4, 8, 16, 32 or 64"},
};
// Of snapkv; the others of its family add one.
constexpr MethodParameter kKeptTokens = {"tokens", 1024, 1, kMostTokens, true, "tokens that a KV head keeps"};
constexpr MethodParameter kKeptWindow = {"window",    256,  1,
                                         kMostTokens, true, "last queries whose softmax is the estimate"};
constexpr MethodParameter kKeptPool = {"pool", 21,   1,
                                       4095,   true, "width of the average over neighbouring tokens (odd)"};
constexpr MethodParameter kKeptRecent = {"recent",    128,  0,
                                         kMostTokens, true, "last tokens that are always kept"};
constexpr MethodParameter kKeptSinks = {"sinks",     4,    0,
                                        kMostTokens, true, "first tokens that are always kept"};
constexpr std::array kSnapKvParameters = {kKeptTokens, kKeptWindow, kKeptPool, kKeptRecent, kKeptSinks};
constexpr std::array kAdaSnapKvParameters = {
    kKeptTokens,
    kKeptWindow,
    kKeptPool,
    kKeptRecent,
    kKeptSinks,
    MethodParameter{"share", 0.2, 0, 1, false, "share of tokens that each head keeps before heads compete"},
};
constexpr std::array kPyramidKvParameters = {
    kKeptTokens,
    kKeptWindow,
    kKeptPool,
    kKeptRecent,
    kKeptSinks,
    MethodParameter{"slope", 0.5, 0, 1, false,
                    "the first layer keeps (1 + slope) · tokens, the last (1 − slope) · tokens"},
};
constexpr std::array kQuestParameters = {
    MethodParameter{"tokens", 1024, kPageTokens, kMostTokens, true,
                    "tokens that a step reads, beside the current page"},
    MethodParameter{"per_query_head", 0, 0, 1, true, "each query head chooses for itself"},
};
constexpr std::array kTopPPagesParameters = {
    MethodParameter{"coverage", 0.9, 0, 1, false, "share of the estimate that the pages of a step cover"},
    MethodParameter{"floor", 256, 0, kMostTokens, true, "tokens that a step reads at least"},
};

constexpr std::array kMethods = {
    Method{"dense",
           Phase::kPrefill,
           SelectUnit::kAll,
           Importance::kNone,
           BudgetRule::kNone,
           CacheRule::kFull,
           {}},
    Method{"streaming", Phase::kPrefill, SelectUnit::kLocalWindow, Importance::kFixed, BudgetRule::kUniform,
           CacheRule::kFull, kStreamingParameters},
    Method{"vertical_slash", Phase::kPrefill, SelectUnit::kColumnsAndDiagonals, Importance::kWindowSoftmax,
           BudgetRule::kUniform, CacheRule::kFull, kVerticalSlashParameters},
    Method{"block_sparse", Phase::kPrefill, SelectUnit::kBlocks, Importance::kPooledBlocks,
           BudgetRule::kUniform, CacheRule::kFull, kBlockSparseParameters},
    Method{"flexprefill", Phase::kPrefill, SelectUnit::kColumnsAndDiagonals, Importance::kWindowSoftmax,
           BudgetRule::kThreshold, CacheRule::kFull, kFlexPrefillParameters},
    Method{"xattention", Phase::kPrefill, SelectUnit::kBlocks, Importance::kAntidiagonals,
           BudgetRule::kThreshold, CacheRule::kFull, kXAttentionParameters},
    Method{"dense",
           Phase::kDecode,
           SelectUnit::kAll,
           Importance::kNone,
           BudgetRule::kNone,
           CacheRule::kFull,
           {}},
    Method{"streaming", Phase::kDecode, SelectUnit::kLocalWindow, Importance::kFixed, BudgetRule::kUniform,
           CacheRule::kEvict, kStreamingParameters},
    Method{"snapkv", Phase::kDecode, SelectUnit::kTokens, Importance::kWindowSoftmax, BudgetRule::kUniform,
           CacheRule::kEvict, kSnapKvParameters},
    Method{"ada_snapkv", Phase::kDecode, SelectUnit::kTokens, Importance::kWindowSoftmax,
           BudgetRule::kAdaptiveHeads, CacheRule::kEvict, kAdaSnapKvParameters},
    Method{"pyramidkv", Phase::kDecode, SelectUnit::kTokens, Importance::kWindowSoftmax,
           BudgetRule::kAdaptiveLayers, CacheRule::kEvict, kPyramidKvParameters},
    Method{"quest", Phase::kDecode, SelectUnit::kPages, Importance::kPageBounds, BudgetRule::kUniform,
           CacheRule::kReadSelected, kQuestParameters},
    Method{"topp_pages", Phase::kDecode, SelectUnit::kPages, Importance::kPageBounds, BudgetRule::kThreshold,
           CacheRule::kReadSelected, kTopPPagesParameters},
};

template <class Range, class Name>
std::string joined(const Range& range, const Name& name_of_item) {
  std::string text;
  for (const auto& item : range) {
    const std::string_view name = name_of_item(item);
    if (name.empty()) continue;
    if (!text.empty()) text += ", ";
    text += name;
  }
  return text;
}

bool power_of_two(double value) {
  const auto whole = static_cast<std::uint64_t>(value);
  return (whole & (whole - 1)) == 0;
}

// UsageError unless `value`, given as `text`, suits the parameter.
void check_value(const Method& method, const MethodParameter& p, double value, std::string_view text) {
  const auto wrong = [&](std::string_view wanted) {
    throw UsageError("{}.{} = {}: must be {} from {} to {}", method.name, p.name, text, wanted, p.least,
                     p.most);
  };
  const std::string_view kind = p.whole ? "a whole number" : "a number";
  if (!std::isfinite(value) || value < p.least || value > p.most || (p.whole && value != std::floor(value)))
    wrong(kind);
  if ((p.name == "edge" || p.name == "stride") && !power_of_two(value)) wrong("a power of two");
  if (p.name == "pool" && static_cast<std::int64_t>(value) % 2 == 0) wrong("an odd number");
}

double parse_value(const Method& method, const MethodParameter& p, const std::string& text) {
  const bool is_switch = p.whole && p.least == 0 && p.most == 1;
  if (is_switch && text == "true") return 1;
  if (is_switch && text == "false") return 0;
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) value = std::nan("");
  check_value(method, p, value, text);
  return value;
}

}  // namespace

std::span<const Method> all_methods() {
  return kMethods;
}

const Method& find_method(Phase phase, std::string_view name) {
  for (const Method& method : kMethods) {
    if (method.phase == phase && method.name == name) return method;
  }
  const std::string known = joined(kMethods, [&](const Method& method) {
    return method.phase == phase ? method.name : std::string_view();
  });
  throw UsageError("{} method '{}' is not known: must be one of {}", name_of(phase), name, known);
}

MethodSettings::MethodSettings(const Method& method, const std::map<std::string, std::string>& given)
    : method_(&method) {
  for (const MethodParameter& parameter : method.parameters) values_.push_back(parameter.fallback);
  const std::string prefix = std::string(method.name) + ".";
  for (const auto& [key, text] : given) {
    if (key.compare(0, prefix.size(), prefix) != 0) continue;
    const std::string_view name = std::string_view(key).substr(prefix.size());
    const auto found = std::find_if(method.parameters.begin(), method.parameters.end(),
                                    [&](const MethodParameter& parameter) { return parameter.name == name; });
    if (found == method.parameters.end()) {
      const std::string known =
          joined(method.parameters, [](const MethodParameter& parameter) { return parameter.name; });
      throw UsageError("{}: {} has no such parameter: {}", key, method.name,
                       known.empty() ? "it has none" : "it has " + known);
    }
    values_[static_cast<std::size_t>(found - method.parameters.begin())] = parse_value(method, *found, text);
  }
}

namespace {

std::size_t index_of(const Method& method, std::string_view name) {
  for (std::size_t i = 0; i < method.parameters.size(); ++i) {
    if (method.parameters[i].name == name) return i;
  }
  throw InternalError("method {} has no parameter {}", method.name, name);
}

}  // namespace

std::int64_t MethodSettings::whole(std::string_view name) const {
  return static_cast<std::int64_t>(values_[index_of(*method_, name)]);
}

double MethodSettings::real(std::string_view name) const {
  return values_[index_of(*method_, name)];
}

void MethodSettings::set(std::string_view name, double value) {
  const std::size_t i = index_of(*method_, name);
  check_value(*method_, method_->parameters[i], value, fmt::format("{}", value));
  values_[i] = value;
}

}  // namespace tessera
