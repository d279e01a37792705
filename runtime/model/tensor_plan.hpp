// Every tensor of a model, declared once: its name, its shape and how tensor parallelism splits it. Loading,
// random weights, memory planning and validation all read this list.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/model_config.hpp"

namespace tessera {

enum class Split : std::uint8_t {
  kWhole,      // every rank holds all of it (norms)
  kRows,       // rows by equal shares: gate, up (F)
  kHeadRows,   // rows by query heads: q
  kKvRows,     // rows by KV heads, replicated when tp > kv_heads: k, v
  kVocabRows,  // rows by shares of the vocabulary, which need not divide: embedding, logits
  kColumns,    // columns by equal shares: o (heads), down (F); the products are summed over tp
};

enum class TensorRole : std::uint8_t {
  kEmbedding,
  kFinalNorm,
  kLmHead,
  kInputNorm,
  kPostAttentionNorm,
  kPreMlpNorm,
  kPostMlpNorm,
  kQ,
  kK,
  kV,
  kO,
  kQBias,
  kKBias,
  kVBias,
  kQNorm,
  kKNorm,
  kGate,
  kUp,
  kDown,
};

struct TensorSpec {
  TensorRole role;
  int layer;          // −1 outside the layers
  std::string name;   // without the checkpoint's prefix: "layers.3.self_attn.q_proj.weight"
  std::int64_t rows;  // vectors have one row
  std::int64_t columns;
  bool is_vector;
  Split split;
};

// In the order in which a forward pass reads them.
std::vector<TensorSpec> declare_tensors(const ModelConfig& config);

// The part of a tensor that one tp rank holds.
struct Slice {
  std::int64_t row_begin = 0, row_end = 0;
  std::int64_t column_begin = 0, column_end = 0;
  std::int64_t rows() const { return row_end - row_begin; }
  std::int64_t columns() const { return column_end - column_begin; }
};
Slice slice_of(const TensorSpec& spec, const ModelConfig& config, int tp_rank, int tp_size);

// Heads of one tp rank. UsageError when tp does not divide what it splits, with both values.
struct HeadShare {
  std::int64_t heads = 0;  // H
  std::int64_t first_head = 0;
  std::int64_t kv_heads = 0;  // K
  std::int64_t first_kv_head = 0;
};
HeadShare head_share(const ModelConfig& config, int tp_rank, int tp_size);
void check_tensor_parallel(const ModelConfig& config, int tp_size);

// The model as one rank sees it: its heads, KV heads and part of the MLP. Vocabulary and hidden size stay.
ModelConfig config_of_rank(const ModelConfig& config, int tp_rank, int tp_size);

// [begin, end) of the vocabulary of one tp rank.
std::int64_t vocab_begin(std::int64_t vocab, int tp_rank, int tp_size);

}  // namespace tessera
