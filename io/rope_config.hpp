// Rotary position embedding as a model's config.json describes it, and the frequencies that follow from it.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

enum class RopeKind : std::uint8_t { kDefault, kLinear, kLlama3, kYarn };
std::string_view name_of(RopeKind kind);  // "default", "linear", "llama3", "yarn"

struct RopeConfig {
  RopeKind kind = RopeKind::kDefault;
  double theta = 10000;
  double factor = 1;                        // linear, llama3, yarn: how far positions are stretched, >= 1
  std::int64_t original_max_positions = 0;  // llama3, yarn: positions the model was trained on; else 0
  double low_freq_factor = 1;               // llama3
  double high_freq_factor = 4;              // llama3
  double beta_fast = 32;                    // yarn: turns over the original length above which a pair is kept
  double beta_slow = 1;                     // yarn: turns below which a pair is fully interpolated
  bool truncate = true;                     // yarn: round the bounds of the ramp to whole pairs
  std::optional<double> attention_factor;   // yarn: multiplies cos and sin; else 0.1 ln(factor) + 1

  bool operator==(const RopeConfig&) const = default;
};

struct RopeFrequencies {
  std::vector<double> inverse;  // (D/2) radians a position
  double attention_scale = 1;   // multiplies both cos and sin
};
// head_dim is even and positive.
RopeFrequencies rope_frequencies(const RopeConfig& rope, std::int64_t head_dim);

// The rope of a family with one theta, from `rope_parameters`, or `rope_theta` with `rope_scaling` (null,
// rope_type or the old name type). `prefix` is "" or "text_config.". Where a file says a thing twice, both
// must agree.
RopeConfig parse_rope(const nlohmann::json& config, const std::string& prefix, const std::string& file,
                      double default_theta, std::int64_t max_positions);

// Gemma 3's two: `global` for full-attention layers, `local` for sliding ones. Flat (rope_theta,
// rope_scaling, rope_local_base_freq) or per type (rope_parameters: {full_attention, sliding_attention}).
struct RopePair {
  RopeConfig global;
  RopeConfig local;
};
RopePair parse_rope_per_type(const nlohmann::json& config, const std::string& prefix, const std::string& file,
                             std::int64_t max_positions);

struct ModelConfig;

struct EffectiveRope {
  RopeConfig rope;             // of the global layers
  std::int64_t max_positions;  // prompt and output together must fit in this
  std::string description;     // "yarn, factor 2 over 32768 positions": for logs and the trace
};

// --rope auto|config|yarn:F for samples of total_tokens (prompt and output).
//   config: as config.json says.
//   yarn:F: YaRN with factor F, over the positions that the model was trained on. Not for Gemma, nor where
//   config.json
//           scales linearly.
//   auto:   as the study ran it: a Qwen2 trained on 32,768 positions gets YaRN with factor total_tokens /
//   32768 when
//           that exceeds 1 (replacing a YaRN of the config, which would also bend short lengths); all else,
//           config. A Qwen2 whose config.json stretches some other length, or none of 32,768 or more, is left
//           as it is.
// UsageError when the option is not understood or does not apply. It does not compare total_tokens with
// max_positions: the caller does.
EffectiveRope resolve_rope(const ModelConfig& config, std::string_view option, std::int64_t total_tokens);

}  // namespace tessera
