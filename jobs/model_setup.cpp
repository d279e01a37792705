#include "jobs/model_setup.hpp"

#include <algorithm>
#include <filesystem>

#include "jobs/host_memory.hpp"
#include "kvcache/kv_cache.hpp"
#include "runtime/core/error.hpp"

namespace tessera {

ChatFamily chat_family_of(ModelFamily family) {
  switch (family) {
    case ModelFamily::kQwen2:
      return ChatFamily::kQwen2;
    case ModelFamily::kLlama3:
      return ChatFamily::kLlama3;
    case ModelFamily::kGemma3:
      return ChatFamily::kGemma3;
  }
  throw InternalError("a model family has no chat prompt");
}

ModelSetup read_model_setup(const std::string& model_dir, const std::string& rope_option,
                            std::int64_t total_tokens) {
  ModelConfig config = read_model_config(model_dir);
  EffectiveRope rope = resolve_rope(config, rope_option, total_tokens);
  if (total_tokens > rope.max_positions) {
    throw UsageError(
        "--length and --max-output-tokens ask for {} tokens together, but the model allows {} under its "
        "rope ({}); shorten them or set --rope yarn:F",
        total_tokens, rope.max_positions, rope.description);
  }
  Tokenizer tokenizer = Tokenizer::load(model_dir + "/tokenizer.json");
  if (tokenizer.vocab_size() > config.vocab) {
    throw InputError(
        "{}/tokenizer.json: its largest id is {}, but config.json has vocab_size {}; the two belong to "
        "different models",
        model_dir, tokenizer.vocab_size() - 1, config.vocab);
  }
  const ChatFamily chat = chat_family_of(config.family);
  std::filesystem::path path = std::filesystem::absolute(model_dir).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return {std::move(config), std::move(rope), std::move(tokenizer), chat, path.filename().string()};
}

MemoryPlan plan_memory(const ModelConfig& config, const MemoryRequest& request,
                       const AttentionPlan& attention) {
  const GridShape& shape = request.run.grid;
  MemoryPlan plan;
  for (const TensorSpec& spec : declare_tensors(config)) {
    const Slice slice = slice_of(spec, config, 0, shape.tp);
    const bool copied = request.weights_copied || slice.columns() != spec.columns;
    const std::int64_t bytes = slice.rows() * slice.columns() * request.weight_element_bytes;
    (copied ? plan.weights_owned : plan.weights_mapped) += bytes;
    if (!copied) plan.weights_mapped_whole += spec.rows * spec.columns * request.weight_element_bytes;
  }
  const HeadShare share = head_share(config, 0, shape.tp);
  const KvShape kv{static_cast<int>(config.layers), static_cast<int>(share.kv_heads),
                   static_cast<int>(config.head_dim), request.run.kv_dtype,
                   LayerPlans(attention, config).needs_page_bounds()};
  plan.kv = kv_slots_needed(config, request.run, attention) *
            static_cast<std::int64_t>(kv.slot_bytes() + kv.bounds_bytes());
  plan.workspace = workspace_bytes_needed(config, request.run, attention) +
                   selection_bytes_needed(config, request.run, attention);
  return plan;
}

void check_memory(const MemoryPlan& plan, int local_ranks) {
  const std::int64_t available = read_host_memory().available;
  const std::int64_t mapped = std::min(plan.weights_mapped * local_ranks, plan.weights_mapped_whole);
  const std::int64_t asked = mapped + (plan.weights_owned + plan.kv + plan.workspace) * local_ranks;
  if (asked <= available) return;
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  throw ResourceError(
      "memory: {} rank{} on this machine need{} {:.2f} GiB (weights {:.2f}, KV {:.2f}, workspace {:.2f} a "
      "rank), but {:.2f} GiB are available; use more machines, a smaller --batch or a shorter --length",
      local_ranks, local_ranks == 1 ? "" : "s", local_ranks == 1 ? "s" : "", asked / kGiB,
      (plan.weights_mapped + plan.weights_owned) / kGiB, plan.kv / kGiB, plan.workspace / kGiB,
      available / kGiB);
}

}  // namespace tessera
