// What a run takes on the rank that needs most, known before anything is allocated.
#pragma once

#include <cstdint>

#include "io/model_config.hpp"
#include "parallel/grid.hpp"
#include "runtime/core/dtype.hpp"
#include "runtime/model/attention_plan.hpp"

namespace tessera {

struct RunShape {
  GridShape grid;
  std::int64_t prompt_tokens = 0;
  std::int64_t max_tokens = 0;  // of a sequence, output included
  int batch = 1;
  DType kv_dtype = DType::kF32;
  DType dtype = DType::kF32;  // of activations; sums, rope tables and logits are fp32 in any case
};

// KV slots for `batch` sequences that decode and one prompt that passes through: in prefill a layer holds all
// its keys until its decode method, or its window, has let go of what it does not keep.
std::int64_t kv_slots_needed(const ModelConfig& config, const RunShape& run, const AttentionPlan& plan);

// Slots that such a run fills at its highest on the rank that fills most, where every prompt has
// prompt_tokens and every answer its most tokens: kv_slots_needed without its room for the worst case. What a
// method keeps is taken to lie evenly over the ranks.
std::int64_t kv_slots_used(const ModelConfig& config, const RunShape& run, const AttentionPlan& plan);

// Scratch of a Transformer, as its meter counts it.
std::int64_t workspace_bytes_needed(const ModelConfig& config, const RunShape& run,
                                    const AttentionPlan& plan);

// The selection of one layer while it is made, at most: scores, lists, and what goes with them.
std::int64_t selection_bytes_needed(const ModelConfig& config, const RunShape& run,
                                    const AttentionPlan& plan);

// On a GPU (device_model.hpp), at most. Weights and cache have 16-bit elements there.
struct DeviceNeeds {
  std::int64_t weights = 0;
  std::int64_t kv = 0;
  std::int64_t workspace = 0;  // what a pool rounds up included
  std::int64_t total() const { return weights + kv + workspace; }
};
DeviceNeeds device_bytes_needed(const ModelConfig& config, const RunShape& run, const AttentionPlan& plan);

}  // namespace tessera
