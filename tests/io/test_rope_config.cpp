// Rope: frequencies against the published formulas, and what --rope makes of a model.
#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "io/model_config.hpp"
#include "tests/io/checkpoint_files.hpp"
#include "tests/io/published_models.hpp"

using namespace tessera;
using namespace tessera::test;
using nlohmann::json;

TEST_CASE("YaRN: bounds of the ramp and attention factor for Qwen at factor 4") {
  RopeConfig rope;
  rope.kind = RopeKind::kYarn;
  rope.theta = 1e6;
  rope.factor = 4;
  rope.original_max_positions = 32768;
  const RopeFrequencies found = rope_frequencies(rope, 128);
  REQUIRE(found.inverse.size() == 64);
  CHECK(found.attention_scale == doctest::Approx(1.138629436).epsilon(1e-9));
  for (int i = 0; i < 64; ++i) {
    CAPTURE(i);
    const double plain = std::pow(1e6, -i / 64.0);
    const double ratio = found.inverse[i] / plain;
    if (i <= 23) CHECK(ratio == doctest::Approx(1).epsilon(1e-12));     // low = 23
    if (i >= 40) CHECK(ratio == doctest::Approx(0.25).epsilon(1e-12));  // high = 40
    if (i > 23 && i < 40) CHECK(ratio == doctest::Approx(1 - 0.75 * (i - 23) / 17.0).epsilon(1e-12));
  }
  rope.attention_factor = 1.5;
  CHECK(rope_frequencies(rope, 128).attention_scale == 1.5);
  rope.attention_factor.reset();
  rope.factor = 1;
  CHECK(rope_frequencies(rope, 128).attention_scale == 1);
}

TEST_CASE("llama3, linear and default frequencies") {
  const RopeFrequencies plain = rope_frequencies({}, 8);
  CHECK(plain.attention_scale == 1);
  for (int i = 0; i < 4; ++i) CHECK(plain.inverse[i] == doctest::Approx(std::pow(10.0, -i)).epsilon(1e-14));

  const ModelConfig gemma3 = parse_model(gemma());
  const RopeFrequencies linear = rope_frequencies(gemma3.rope, 256);
  CHECK(linear.inverse[0] == 0.125);
  CHECK(linear.inverse[64] == doctest::Approx(1e-3 / 8).epsilon(1e-12));

  const RopeFrequencies found = rope_frequencies(parse_model(llama()).rope, 128);
  int kept = 0, blended = 0, divided = 0;
  for (int i = 0; i < 64; ++i) {
    const double inv = std::pow(5e5, -i / 64.0), wavelength = 2 * std::numbers::pi / inv;
    double expected = inv;
    if (wavelength > 8192) {
      expected = inv / 8;
      ++divided;
    } else if (wavelength >= 2048) {
      const double s = (8192 / wavelength - 1) / 3;
      expected = (1 - s) * inv / 8 + s * inv;
      ++blended;
    } else {
      ++kept;
    }
    CHECK(found.inverse[i] == doctest::Approx(expected).epsilon(1e-12));
  }
  CHECK(kept > 0);
  CHECK(blended > 0);
  CHECK(divided > 0);
}

TEST_CASE("--rope: what a run gets") {
  const ModelConfig plain = parse_model(qwen());
  CHECK(resolve_rope(plain, "auto", 32768).rope == plain.rope);
  CHECK(resolve_rope(plain, "auto", 32768).max_positions == 32768);
  const EffectiveRope longer = resolve_rope(plain, "auto", 129024);
  CHECK(longer.rope.kind == RopeKind::kYarn);
  CHECK(longer.rope.factor == 129024.0 / 32768);
  CHECK(longer.rope.theta == 1e6);
  CHECK(longer.rope.original_max_positions == 32768);
  CHECK(longer.max_positions == 129024);
  CHECK(contains(longer.description, "yarn, factor 3.9375 over 32768"));
  for (std::int64_t total = 32769; total < 200000; total += 997) {
    CHECK(resolve_rope(plain, "auto", total).max_positions == total);  // no rounding loses the last token
  }
  CHECK(resolve_rope(plain, "config", 129024).rope == plain.rope);
  CHECK(resolve_rope(plain, "config", 129024).max_positions == 32768);
  CHECK(resolve_rope(plain, "yarn:4", 100).rope.factor == 4);
  CHECK(resolve_rope(plain, "yarn:4", 100).max_positions == 131072);
  CHECK(resolve_rope(plain, "yarn:2.5", 100).rope.factor == 2.5);

  // A shipped YaRN config, whose max_position_embeddings is still 32768: the factor stays as written.
  json c = qwen();
  c["rope_scaling"] = {{"factor", 4.0}, {"original_max_position_embeddings", 32768}, {"type", "yarn"}};
  const ModelConfig yarn = parse_model(c);
  CHECK(yarn.rope.factor == 4);
  CHECK(resolve_rope(yarn, "config", 100).max_positions == 131072);
  CHECK(resolve_rope(yarn, "auto", 100).rope == yarn.rope);
  CHECK(resolve_rope(yarn, "auto", 65536).rope.factor == 2);
  c["max_position_embeddings"] = 131072;
  CHECK(resolve_rope(parse_model(c), "config", 100).max_positions == 131072);
  CHECK(parse_model(c).rope.factor == 4);

  // The base models say 131072 without scaling; a model trained on another length is left as its config says.
  c = qwen();
  c["max_position_embeddings"] = 131072;
  CHECK(resolve_rope(parse_model(c), "auto", 65536).rope.factor == 2);
  for (const int positions : {4096, 1010000}) {
    c["max_position_embeddings"] = positions;
    CHECK(resolve_rope(parse_model(c), "auto", 65536).rope.kind == RopeKind::kDefault);
    CHECK(resolve_rope(parse_model(c), "auto", 65536).max_positions == positions);
  }
  c["rope_scaling"] = {{"factor", 4.0}, {"original_max_position_embeddings", 256}, {"rope_type", "yarn"}};
  CHECK(resolve_rope(parse_model(c), "auto", 65536).rope == parse_model(c).rope);

  const ModelConfig llama3 = parse_model(llama());
  CHECK(resolve_rope(llama3, "auto", 131072).rope == llama3.rope);
  CHECK(resolve_rope(llama3, "auto", 131072).max_positions == 131072);
  CHECK(resolve_rope(llama3, "yarn:8", 131072).rope.original_max_positions == 8192);
  const ModelConfig gemma3 = parse_model(gemma());
  CHECK(resolve_rope(gemma3, "auto", 65536).rope == gemma3.rope);

  for (const char* option : {"", "Auto", "yarn", "yarn:", "yarn:x", "yarn:4x", "yarn:0.5", "yarn:-4",
                             "yarn:1e9", "yarn:nan", "yarn:inf", "ntk:2"}) {
    CAPTURE(option);
    const std::string message = message_of([&] { resolve_rope(plain, option, 100); }, ExitCode::kUsage);
    CHECK(contains(message, fmt::format("--rope {}:", option)));
  }
  CHECK(contains(message_of([&] { resolve_rope(gemma3, "yarn:2", 100); }, ExitCode::kUsage), "gemma3"));
}
