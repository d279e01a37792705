#include "io/rope_config.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "io/json.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

constexpr double kMinTheta = 1.0 + 1e-6;  // its logarithm divides
constexpr double kMaxTheta = 1e12;
constexpr double kMaxFactor = 4096;
constexpr std::int64_t kMaxPositions = std::int64_t{1} << 30;

constexpr std::array<const char*, 14> kKnownKeys = {"rope_type",
                                                    "type",
                                                    "rope_theta",
                                                    "factor",
                                                    "original_max_position_embeddings",
                                                    "low_freq_factor",
                                                    "beta_fast",
                                                    "beta_slow",
                                                    "high_freq_factor",
                                                    "attention_factor",
                                                    "mscale",
                                                    "mscale_all_dim",
                                                    "truncate",
                                                    "partial_rotary_factor"};

// The value, or nullptr when absent or null.
const nlohmann::json* present(const nlohmann::json& config, const std::string& path) {
  const nlohmann::json* value = json_find(config, path);
  return value == nullptr || value->is_null() ? nullptr : value;
}

// `rope_type`, or its old name `type`.
RopeKind parse_kind(const nlohmann::json& config, const std::string& path, const std::string& file) {
  const std::string new_path = path + ".rope_type", old_path = path + ".type";
  std::string field = new_path;
  if (present(config, new_path) == nullptr && present(config, old_path) != nullptr) field = old_path;
  const std::string name = json_string_or(config, field.c_str(), file, "default");
  if (present(config, old_path) != nullptr && json_string(config, old_path.c_str(), file) != name) {
    throw_json_field(file, old_path, *json_find(config, old_path), "the same as rope_type");
  }
  for (const RopeKind kind : {RopeKind::kDefault, RopeKind::kLinear, RopeKind::kLlama3, RopeKind::kYarn}) {
    if (name == name_of(kind)) return kind;
  }
  throw_json_field(file, field, *json_find(config, field), "one of default, linear, llama3, yarn");
}

// 0.1 · mscale · ln(factor) + 1 (Peng et al. 2023, section 3.4; mscale is DeepSeek's extension).
double yarn_attention_scale(double factor, double mscale = 1) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

void parse_yarn(const nlohmann::json& config, const std::string& path, const std::string& file,
                std::int64_t max_positions, RopeConfig& rope) {
  const auto number_or = [&](const char* key, double min, double max, double fallback) {
    return json_number_or(config, (path + key).c_str(), file, min, max, fallback);
  };
  // The factor is taken as written. Some releases of transformers recompute it as max_position_embeddings
  // over original_max_position_embeddings, which is 1 for a shipped Qwen config and so turns YaRN off.
  rope.original_max_positions = json_integer_or(config, (path + ".original_max_position_embeddings").c_str(),
                                                file, 1, kMaxPositions, max_positions);
  rope.beta_fast = number_or(".beta_fast", 1e-3, 1e6, 32);
  rope.beta_slow = number_or(".beta_slow", 1e-3, 1e6, 1);
  if (rope.beta_slow > rope.beta_fast) {
    throw_json_field(file, path + ".beta_slow", nlohmann::json(rope.beta_slow),
                     "at most beta_fast, " + nlohmann::json(rope.beta_fast).dump());
  }
  rope.truncate = json_bool_or(config, (path + ".truncate").c_str(), file, true);
  const double mscale = number_or(".mscale", 0, 1e3, 0);
  const double mscale_all = number_or(".mscale_all_dim", 0, 1e3, 0);
  if (present(config, path + ".attention_factor") != nullptr) {
    rope.attention_factor = number_or(".attention_factor", 1e-3, 1e3, 1);
  } else if (mscale > 0 && mscale_all > 0) {
    rope.attention_factor =
        yarn_attention_scale(rope.factor, mscale) / yarn_attention_scale(rope.factor, mscale_all);
  }
}

// One object that describes a rope, at `path`, or the default kind when there is none.
RopeConfig parse_rope_object(const nlohmann::json& config, const std::string& path, const std::string& file,
                             double theta, std::int64_t max_positions) {
  RopeConfig rope;
  rope.theta = theta;
  if (present(config, path) == nullptr) return rope;
  for (const auto& [key, value] : json_object(config, path.c_str(), file).items()) {
    const bool known =
        std::any_of(kKnownKeys.begin(), kKnownKeys.end(), [&](const char* k) { return key == k; });
    // A rope parameter that is not understood would change every result.
    if (!known)
      throw_json_field(file, path + "." + json_brief(key), value, "no such parameter: it is not supported");
  }
  const auto number = [&](const char* key, double min, double max) {
    return json_number(config, (path + key).c_str(), file, min, max);
  };
  rope.kind = parse_kind(config, path, file);
  rope.theta = json_number_or(config, (path + ".rope_theta").c_str(), file, kMinTheta, kMaxTheta, theta);
  json_number_or(config, (path + ".partial_rotary_factor").c_str(), file, 1, 1, 1);
  if (rope.kind == RopeKind::kDefault) return rope;
  rope.factor = number(".factor", 1, kMaxFactor);
  if (rope.kind == RopeKind::kLlama3) {
    rope.low_freq_factor = number(".low_freq_factor", 1e-3, 1e6);
    rope.high_freq_factor = number(".high_freq_factor", 1e-3, 1e6);
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      throw_json_field(file, path + ".high_freq_factor", *json_find(config, path + ".high_freq_factor"),
                       "more than low_freq_factor, " + nlohmann::json(rope.low_freq_factor).dump());
    }
    rope.original_max_positions =
        json_integer(config, (path + ".original_max_position_embeddings").c_str(), file, 1, kMaxPositions);
  } else if (rope.kind == RopeKind::kYarn) {
    parse_yarn(config, path, file, max_positions, rope);
  }
  return rope;
}

// A theta that may stand at the top (`key`) and again inside the rope's object: both must agree.
RopeConfig parse_with_theta(const nlohmann::json& config, const std::string& path,
                            const std::string& theta_path, const std::string& file, double default_theta,
                            std::int64_t max_positions) {
  const double theta = json_number_or(config, theta_path.c_str(), file, kMinTheta, kMaxTheta, default_theta);
  const RopeConfig rope = parse_rope_object(config, path, file, theta, max_positions);
  if (present(config, theta_path) != nullptr && rope.theta != theta) {
    throw_json_field(file, theta_path, *json_find(config, theta_path),
                     path + ".rope_theta, " + nlohmann::json(rope.theta).dump());
  }
  return rope;
}

}  // namespace

std::string_view name_of(RopeKind kind) {
  switch (kind) {
    case RopeKind::kDefault:
      return "default";
    case RopeKind::kLinear:
      return "linear";
    case RopeKind::kLlama3:
      return "llama3";
    case RopeKind::kYarn:
      return "yarn";
  }
  return "?";
}

RopeConfig parse_rope(const nlohmann::json& config, const std::string& prefix, const std::string& file,
                      double default_theta, std::int64_t max_positions) {
  const std::string theta_path = prefix + "rope_theta";
  const std::string old_path = prefix + "rope_scaling", new_path = prefix + "rope_parameters";
  const bool has_old = present(config, old_path) != nullptr, has_new = present(config, new_path) != nullptr;
  const std::string& path = has_new ? new_path : old_path;
  const RopeConfig rope = parse_with_theta(config, path, theta_path, file, default_theta, max_positions);
  if (has_old && has_new && rope != parse_rope_object(config, old_path, file, rope.theta, max_positions)) {
    throw_json_field(file, old_path, *json_find(config, old_path), "the same as rope_parameters, or null");
  }
  return rope;
}

RopePair parse_rope_per_type(const nlohmann::json& config, const std::string& prefix, const std::string& file,
                             std::int64_t max_positions) {
  constexpr double kGlobalTheta = 1e6, kLocalTheta = 1e4;  // defaults of the Gemma3TextConfig class
  const std::string theta_path = prefix + "rope_theta", local_theta_path = prefix + "rope_local_base_freq";
  const std::string old_path = prefix + "rope_scaling", new_path = prefix + "rope_parameters";
  if (present(config, new_path) == nullptr) {
    RopePair pair;
    pair.global = parse_with_theta(config, old_path, theta_path, file, kGlobalTheta, max_positions);
    pair.local.theta =
        json_number_or(config, local_theta_path.c_str(), file, kMinTheta, kMaxTheta, kLocalTheta);
    return pair;
  }
  for (const auto& [key, value] : json_object(config, new_path.c_str(), file).items()) {
    if (key != "full_attention" && key != "sliding_attention") {
      throw_json_field(file, new_path + "." + json_brief(key), value,
                       "only full_attention and sliding_attention, each with its own parameters");
    }
  }
  const RopePair pair = {
      parse_with_theta(config, new_path + ".full_attention", theta_path, file, kGlobalTheta, max_positions),
      parse_with_theta(config, new_path + ".sliding_attention", local_theta_path, file, kLocalTheta,
                       max_positions)};
  if (present(config, old_path) != nullptr &&
      pair.global != parse_rope_object(config, old_path, file, pair.global.theta, max_positions)) {
    throw_json_field(file, old_path, *json_find(config, old_path),
                     "the same as rope_parameters.full_attention, or null");
  }
  return pair;
}

namespace {

// YaRN (Peng et al. 2023): pairs that turn more than beta_fast times over the original length are kept, those
// below beta_slow are interpolated by the factor, and a linear ramp over pairs joins them.
std::vector<double> yarn_inverse(const RopeConfig& rope, std::vector<double> inverse, double head_dim) {
  const auto pair_of_turns = [&](double turns) {  // the pair that turns so many times; fractional
    return head_dim *
           std::log(static_cast<double>(rope.original_max_positions) / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(rope.theta));
  };
  double low = pair_of_turns(rope.beta_fast), high = pair_of_turns(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, head_dim - 1);
  if (low == high) high += 0.001;  // as published: keeps the ramp's slope finite
  for (std::size_t i = 0; i < inverse.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    inverse[i] = inverse[i] / rope.factor * ramp + inverse[i] * (1 - ramp);
  }
  return inverse;
}

// Llama 3.1: by wavelength against the original length; long waves are divided by the factor, short ones
// kept, and those between blended.
std::vector<double> llama3_inverse(const RopeConfig& rope, std::vector<double> inverse) {
  const double original = static_cast<double>(rope.original_max_positions);
  for (double& value : inverse) {
    const double wavelength = 2 * std::numbers::pi / value;
    if (wavelength < original / rope.high_freq_factor) continue;
    if (wavelength > original / rope.low_freq_factor) {
      value /= rope.factor;
      continue;
    }
    const double smooth =
        (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
    value = (1 - smooth) * value / rope.factor + smooth * value;
  }
  return inverse;
}

}  // namespace

RopeFrequencies rope_frequencies(const RopeConfig& rope, std::int64_t head_dim) {
  TESSERA_CHECK(head_dim > 0 && head_dim % 2 == 0);
  const double dim = static_cast<double>(head_dim);
  RopeFrequencies result;
  result.inverse.resize(static_cast<std::size_t>(head_dim / 2));
  for (std::size_t i = 0; i < result.inverse.size(); ++i) {
    result.inverse[i] = std::pow(rope.theta, -2.0 * static_cast<double>(i) / dim);
  }
  switch (rope.kind) {
    case RopeKind::kDefault:
      break;
    case RopeKind::kLinear:
      for (double& value : result.inverse) value /= rope.factor;
      break;
    case RopeKind::kLlama3:
      result.inverse = llama3_inverse(rope, std::move(result.inverse));
      break;
    case RopeKind::kYarn:
      result.inverse = yarn_inverse(rope, std::move(result.inverse), dim);
      result.attention_scale = rope.attention_factor.value_or(yarn_attention_scale(rope.factor));
      break;
  }
  return result;
}

}  // namespace tessera
