// The taxonomy: every method is a row over four small enums (DESIGN.md section 2). Adding a method is adding
// a row and at most one function in each family it needs: importance (window_scores, block_scores,
// page_scores), budget, selection.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/core/operation.hpp"

namespace tessera {

enum class SelectUnit : std::uint8_t { kAll, kLocalWindow, kColumnsAndDiagonals, kBlocks, kTokens, kPages };
enum class Importance : std::uint8_t {
  kNone,
  kFixed,
  kWindowSoftmax,
  kPooledBlocks,
  kAntidiagonals,
  kPageBounds
};
enum class BudgetRule : std::uint8_t { kNone, kUniform, kAdaptiveHeads, kAdaptiveLayers, kThreshold };
enum class CacheRule : std::uint8_t { kFull, kEvict, kReadSelected };

// A native parameter of a method: `--set METHOD.NAME=VALUE`.
struct MethodParameter {
  std::string_view name;
  double fallback = 0;
  double least = 0;
  double most = 0;
  bool whole = true;  // a whole number
  std::string_view help;
};

struct Method {
  std::string_view name;
  Phase phase;
  SelectUnit unit;
  Importance importance;
  BudgetRule budget;
  CacheRule cache;
  std::span<const MethodParameter> parameters;
};

std::span<const Method> all_methods();
// UsageError names the methods of that phase.
const Method& find_method(Phase phase, std::string_view name);

// The native settings of one method, defaults filled, bounds checked: UsageError names key, value and bounds.
class MethodSettings {
 public:
  // given: keys "quest.tokens"; keys of other methods are left alone.
  MethodSettings(const Method& method, const std::map<std::string, std::string>& given);
  const Method& method() const { return *method_; }
  std::int64_t whole(std::string_view name) const;  // InternalError for a name the method lacks
  double real(std::string_view name) const;
  void set(std::string_view name, double value);  // checked like given ones

 private:
  const Method* method_;
  std::vector<double> values_;
};

}  // namespace tessera
