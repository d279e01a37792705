// Everything that a run knows about its model before weights are loaded: read and checked on every rank
// alike.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/chat_prompt.hpp"
#include "io/model_config.hpp"
#include "io/run_key.hpp"
#include "io/tokenizer.hpp"
#include "jobs/options.hpp"
#include "runtime/model/memory_needs.hpp"
#include "runtime/model/tensor_plan.hpp"

namespace tessera {

struct ModelSetup {
  ModelConfig config;
  EffectiveRope rope;
  Tokenizer tokenizer;
  ChatFamily chat;
  std::string model_name;  // last part of the directory
};

// InputError for a bad file; UsageError when length + output exceeds what the model's rope allows.
ModelSetup read_model_setup(const std::string& model_dir, const std::string& rope_option,
                            std::int64_t total_tokens);

// Two checks of it.
void check_positions(const EffectiveRope& rope, std::int64_t total_tokens);         // UsageError
Tokenizer read_tokenizer(const std::string& model_dir, const ModelConfig& config);  // InputError

ChatFamily chat_family_of(ModelFamily family);

// Bytes that one rank of the grid will hold, as planned.
struct MemoryPlan {
  std::int64_t weights_mapped = 0;  // pages of the checkpoint's files, which the ranks of a machine share
  std::int64_t weights_mapped_whole = 0;  // the most that all ranks together can map
  std::int64_t weights_owned = 0;         // copies of its own: column slices, fp32 copies, drawn weights
  std::int64_t kv = 0;
  std::int64_t kv_slot = 0;  // a slot of it, with its bounds
  std::int64_t workspace = 0;
};
// How the run will keep its weights; `file` holds the dtypes of the checkpoint, empty where they are drawn.
struct KeptWeights {
  std::vector<DType> dtypes;  // in the order of declare_tensors
  bool copied = false;
};
KeptWeights kept_weights(const EvalOptions& options, const ModelConfig& config,
                         const std::vector<DType>& file);

struct MemoryRequest {
  RunShape run;
  KeptWeights weights;
};
MemoryPlan plan_memory(const ModelConfig& config, const MemoryRequest& request, const AttentionPlan& plan);

// "memory a rank: weights 1.2 GiB, …", one line.
std::string memory_text(const MemoryPlan& plan);

// ResourceError when the ranks of this machine ask for more than it has available; names both, and what to
// change.
void check_memory(const MemoryPlan& plan, int local_ranks);

}  // namespace tessera
