#include "runtime/model/tensor_plan.hpp"

#include "runtime/core/error.hpp"

namespace tessera {
namespace {

TensorSpec matrix(TensorRole role, int layer, std::string name, std::int64_t rows, std::int64_t columns,
                  Split split) {
  return {role, layer, std::move(name), rows, columns, false, split};
}

TensorSpec vector(TensorRole role, int layer, std::string name, std::int64_t columns, Split split) {
  return {role, layer, std::move(name), 1, columns, true, split};
}

void declare_layer(const ModelConfig& c, int layer, std::vector<TensorSpec>& out) {
  const std::string base = fmt::format("layers.{}.", layer);
  const std::string attention = base + "self_attn.";
  const std::string mlp = base + "mlp.";
  const std::int64_t q_rows = c.heads * c.head_dim;
  const std::int64_t kv_rows = c.kv_heads * c.head_dim;

  out.push_back(
      vector(TensorRole::kInputNorm, layer, base + "input_layernorm.weight", c.hidden, Split::kWhole));
  out.push_back(
      matrix(TensorRole::kQ, layer, attention + "q_proj.weight", q_rows, c.hidden, Split::kHeadRows));
  out.push_back(
      matrix(TensorRole::kK, layer, attention + "k_proj.weight", kv_rows, c.hidden, Split::kKvRows));
  out.push_back(
      matrix(TensorRole::kV, layer, attention + "v_proj.weight", kv_rows, c.hidden, Split::kKvRows));
  if (c.qkv_bias) {
    out.push_back(vector(TensorRole::kQBias, layer, attention + "q_proj.bias", q_rows, Split::kHeadRows));
    out.push_back(vector(TensorRole::kKBias, layer, attention + "k_proj.bias", kv_rows, Split::kKvRows));
    out.push_back(vector(TensorRole::kVBias, layer, attention + "v_proj.bias", kv_rows, Split::kKvRows));
  }
  if (c.qk_norm) {
    out.push_back(vector(TensorRole::kQNorm, layer, attention + "q_norm.weight", c.head_dim, Split::kWhole));
    out.push_back(vector(TensorRole::kKNorm, layer, attention + "k_norm.weight", c.head_dim, Split::kWhole));
  }
  out.push_back(
      matrix(TensorRole::kO, layer, attention + "o_proj.weight", c.hidden, q_rows, Split::kColumns));
  // Llama and Qwen call the norm before the MLP post_attention_layernorm; Gemma has one on each side of it.
  if (c.post_norms) {
    out.push_back(vector(TensorRole::kPostAttentionNorm, layer, base + "post_attention_layernorm.weight",
                         c.hidden, Split::kWhole));
    out.push_back(vector(TensorRole::kPreMlpNorm, layer, base + "pre_feedforward_layernorm.weight", c.hidden,
                         Split::kWhole));
    out.push_back(vector(TensorRole::kPostMlpNorm, layer, base + "post_feedforward_layernorm.weight",
                         c.hidden, Split::kWhole));
  } else {
    out.push_back(vector(TensorRole::kPreMlpNorm, layer, base + "post_attention_layernorm.weight", c.hidden,
                         Split::kWhole));
  }
  out.push_back(matrix(TensorRole::kGate, layer, mlp + "gate_proj.weight", c.mlp, c.hidden, Split::kRows));
  out.push_back(matrix(TensorRole::kUp, layer, mlp + "up_proj.weight", c.mlp, c.hidden, Split::kRows));
  out.push_back(matrix(TensorRole::kDown, layer, mlp + "down_proj.weight", c.hidden, c.mlp, Split::kColumns));
}

}  // namespace

std::vector<TensorSpec> declare_tensors(const ModelConfig& config) {
  std::vector<TensorSpec> specs;
  specs.push_back(matrix(TensorRole::kEmbedding, -1, "embed_tokens.weight", config.vocab, config.hidden,
                         Split::kVocabRows));
  for (int layer = 0; layer < config.layers; ++layer) declare_layer(config, layer, specs);
  specs.push_back(vector(TensorRole::kFinalNorm, -1, "norm.weight", config.hidden, Split::kWhole));
  if (!config.tied_embeddings) {
    specs.push_back(
        matrix(TensorRole::kLmHead, -1, "lm_head.weight", config.vocab, config.hidden, Split::kVocabRows));
  }
  return specs;
}

void check_tensor_parallel(const ModelConfig& c, int tp_size) {
  if (c.heads % tp_size != 0) {
    throw UsageError("--tp {} does not divide the model's {} query heads; choose a divisor of {}", tp_size,
                     c.heads, c.heads);
  }
  if (c.kv_heads % tp_size != 0 && tp_size % c.kv_heads != 0) {
    throw UsageError(
        "--tp {} neither divides the model's {} KV heads nor is a multiple of them; choose another tp",
        tp_size, c.kv_heads);
  }
  if (c.mlp % tp_size != 0) {
    throw UsageError("--tp {} does not divide the model's MLP size {}; choose a divisor", tp_size, c.mlp);
  }
}

HeadShare head_share(const ModelConfig& c, int tp_rank, int tp_size) {
  check_tensor_parallel(c, tp_size);
  HeadShare share;
  share.heads = c.heads / tp_size;
  share.first_head = tp_rank * share.heads;
  if (tp_size <= c.kv_heads) {
    share.kv_heads = c.kv_heads / tp_size;
    share.first_kv_head = tp_rank * share.kv_heads;
  } else {
    share.kv_heads = 1;  // tp / kv_heads ranks hold the same one
    share.first_kv_head = tp_rank / (tp_size / c.kv_heads);
  }
  return share;
}

ModelConfig config_of_rank(const ModelConfig& config, int tp_rank, int tp_size) {
  const HeadShare share = head_share(config, tp_rank, tp_size);
  ModelConfig part = config;
  part.heads = share.heads;
  part.kv_heads = share.kv_heads;
  part.mlp = config.mlp / tp_size;
  return part;
}

std::int64_t vocab_begin(std::int64_t vocab, int tp_rank, int tp_size) {
  return vocab * tp_rank / tp_size;
}

Slice slice_of(const TensorSpec& spec, const ModelConfig& c, int tp_rank, int tp_size) {
  const HeadShare share = head_share(c, tp_rank, tp_size);
  std::int64_t first = 0, last = 0;
  switch (spec.split) {
    case Split::kWhole:
      return {0, spec.rows, 0, spec.columns};
    case Split::kHeadRows:
      first = share.first_head * c.head_dim;
      last = first + share.heads * c.head_dim;
      break;
    case Split::kKvRows:
      first = share.first_kv_head * c.head_dim;
      last = first + share.kv_heads * c.head_dim;
      break;
    case Split::kVocabRows:
      first = vocab_begin(spec.rows, tp_rank, tp_size);
      last = vocab_begin(spec.rows, tp_rank + 1, tp_size);
      break;
    case Split::kRows:
      first = spec.rows / tp_size * tp_rank;
      last = first + spec.rows / tp_size;
      break;
    case Split::kColumns:
      first = spec.columns / tp_size * tp_rank;
      last = first + spec.columns / tp_size;
      return {0, spec.rows, first, last};
  }
  if (spec.is_vector) return {0, 1, first, last};
  return {first, last, 0, spec.columns};
}

}  // namespace tessera
