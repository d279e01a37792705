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

void check_positions(const EffectiveRope& rope, std::int64_t total_tokens) {
  if (total_tokens <= rope.max_positions) return;
  throw UsageError(
      "--length and --max-output-tokens ask for {} tokens together, but the model allows {} under its "
      "rope ({}); shorten them or set --rope yarn:F",
      total_tokens, rope.max_positions, rope.description);
}

Tokenizer read_tokenizer(const std::string& model_dir, const ModelConfig& config) {
  Tokenizer tokenizer = Tokenizer::load(model_dir + "/tokenizer.json");
  if (tokenizer.vocab_size() > config.vocab) {
    throw InputError(
        "{}/tokenizer.json: its largest id is {}, but config.json has vocab_size {}; the two belong to "
        "different models",
        model_dir, tokenizer.vocab_size() - 1, config.vocab);
  }
  return tokenizer;
}

ModelSetup read_model_setup(const std::string& model_dir, const std::string& rope_option,
                            std::int64_t total_tokens) {
  ModelConfig config = read_model_config(model_dir);
  EffectiveRope rope = resolve_rope(config, rope_option, total_tokens);
  check_positions(rope, total_tokens);
  Tokenizer tokenizer = read_tokenizer(model_dir, config);
  const ChatFamily chat = chat_family_of(config.family);
  std::filesystem::path path = std::filesystem::absolute(model_dir).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return {std::move(config), std::move(rope), std::move(tokenizer), chat, path.filename().string()};
}

KeptWeights kept_weights(const EvalOptions& options, const ModelConfig& config,
                         const std::vector<DType>& file) {
  KeptWeights kept{file, options.weights.random};
  if (options.weights.random) kept.dtypes.assign(declare_tensors(config).size(), config.dtype);
  if (options.weights_dtype.as_file) return kept;
  for (DType& dtype : kept.dtypes) {
    kept.copied = kept.copied || dtype != options.weights_dtype.dtype;
    dtype = options.weights_dtype.dtype;
  }
  return kept;
}

MemoryPlan plan_memory(const ModelConfig& config, const MemoryRequest& request,
                       const AttentionPlan& attention) {
  const GridShape& shape = request.run.grid;
  MemoryPlan plan;
  std::size_t next = 0;
  for (const TensorSpec& spec : declare_tensors(config)) {
    const Slice slice = slice_of(spec, config, 0, shape.tp);
    const auto element = static_cast<std::int64_t>(size_of(request.weights.dtypes.at(next++)));
    const bool copied = request.weights.copied || slice.columns() != spec.columns;
    const std::int64_t bytes = slice.rows() * slice.columns() * element;
    (copied ? plan.weights_owned : plan.weights_mapped) += bytes;
    if (!copied) plan.weights_mapped_whole += spec.rows * spec.columns * element;
  }
  const HeadShare share = head_share(config, 0, shape.tp);
  const KvShape kv{static_cast<int>(config.layers), static_cast<int>(share.kv_heads),
                   static_cast<int>(config.head_dim), request.run.kv_dtype,
                   LayerPlans(attention, config).needs_page_bounds()};
  plan.kv_slot = static_cast<std::int64_t>(kv.slot_bytes() + kv.bounds_bytes());
  plan.kv = kv_slots_needed(config, request.run, attention) * plan.kv_slot;
  plan.workspace = workspace_bytes_needed(config, request.run, attention) +
                   selection_bytes_needed(config, request.run, attention);
  return plan;
}

std::string memory_text(const MemoryPlan& plan) {
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  return fmt::format("memory a rank, as planned: weights {:.3f} GiB, KV {:.3f}, workspace {:.3f}",
                     static_cast<double>(plan.weights_mapped + plan.weights_owned) / kGiB,
                     static_cast<double>(plan.kv) / kGiB, static_cast<double>(plan.workspace) / kGiB);
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
