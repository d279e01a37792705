// What --rope makes of a model's rope for a run of a given length.
#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "io/model_config.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

constexpr std::int64_t kQwenNativePositions = 32768;  // of Qwen2.5, whatever its config.json allows
constexpr std::int64_t kQwenMaxPositions = 131072;    // more than this is another recipe (the 1M models)
constexpr double kMaxYarnFactor = 64;

std::string describe(const RopeConfig& rope) {
  switch (rope.kind) {
    case RopeKind::kDefault:
      return fmt::format("default, theta {:g}", rope.theta);
    case RopeKind::kLinear:
      return fmt::format("linear, factor {:g}, theta {:g}", rope.factor, rope.theta);
    case RopeKind::kLlama3:
    case RopeKind::kYarn:
      return fmt::format("{}, factor {:.9g} over {} positions, theta {:g}", name_of(rope.kind), rope.factor,
                         rope.original_max_positions, rope.theta);
  }
  return "?";
}

std::int64_t positions_of(const RopeConfig& rope) {
  return std::llround(rope.factor * static_cast<double>(rope.original_max_positions));
}

EffectiveRope as_config(const ModelConfig& config) {
  std::int64_t max_positions = config.max_positions;
  // A shipped Qwen config with YaRN still says max_position_embeddings 32768.
  if (config.rope.kind == RopeKind::kYarn) max_positions = std::max(max_positions, positions_of(config.rope));
  return {config.rope, max_positions, describe(config.rope) + " (config.json)"};
}

// Positions that the model was trained on: what YaRN stretches.
std::int64_t native_positions(const ModelConfig& config) {
  if (config.rope.original_max_positions > 0) return config.rope.original_max_positions;
  const bool qwen = config.family == ModelFamily::kQwen2 && config.max_positions <= kQwenMaxPositions;
  return qwen ? std::min(config.max_positions, kQwenNativePositions) : config.max_positions;
}

EffectiveRope with_yarn(const ModelConfig& config, double factor, std::int64_t native, std::string_view why) {
  RopeConfig rope;
  rope.kind = RopeKind::kYarn;
  rope.theta = config.rope.theta;
  rope.factor = factor;
  rope.original_max_positions = native;
  if (config.rope.kind ==
      RopeKind::kYarn) {  // its ramp is kept; its attention factor belonged to its own factor
    rope.beta_fast = config.rope.beta_fast;
    rope.beta_slow = config.rope.beta_slow;
    rope.truncate = config.rope.truncate;
  }
  return {rope, positions_of(rope), fmt::format("{} ({})", describe(rope), why)};
}

double parse_factor(std::string_view option, std::string_view text) {
  double factor = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), factor);
  if (error != std::errc() || end != text.data() + text.size() ||
      !(factor >= 1 && factor <= kMaxYarnFactor)) {
    throw UsageError("--rope {}: the factor must be a number from 1 to {}", option, kMaxYarnFactor);
  }
  return factor;
}

}  // namespace

EffectiveRope resolve_rope(const ModelConfig& config, std::string_view option, std::int64_t total_tokens) {
  if (option == "config") return as_config(config);
  if (option == "auto") {
    const bool applies = config.family == ModelFamily::kQwen2 && total_tokens > kQwenNativePositions &&
                         (config.rope.kind == RopeKind::kDefault || config.rope.kind == RopeKind::kYarn) &&
                         native_positions(config) == kQwenNativePositions;
    if (!applies) return as_config(config);
    const double factor = static_cast<double>(total_tokens) / static_cast<double>(kQwenNativePositions);
    return with_yarn(config, std::min(factor, kMaxYarnFactor), kQwenNativePositions, "--rope auto");
  }
  constexpr std::string_view kYarnPrefix = "yarn:";
  if (option.substr(0, kYarnPrefix.size()) == kYarnPrefix) {
    const double factor = parse_factor(option, option.substr(kYarnPrefix.size()));
    if (config.family == ModelFamily::kGemma3 || config.rope.kind == RopeKind::kLinear) {
      throw UsageError(
          "--rope {}: {} scales its positions linearly, which YaRN cannot follow; use --rope config", option,
          config.model_type);
    }
    return with_yarn(config, factor, native_positions(config), fmt::format("--rope {}", option));
  }
  throw UsageError("--rope {}: not understood; use auto, config or yarn:F with a factor F such as 4", option);
}

}  // namespace tessera
