// The weights of one tp rank: views of mapped checkpoint files where a slice is contiguous and kept in the
// file's dtype, copies otherwise.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/checkpoint.hpp"
#include "io/model_config.hpp"
#include "parallel/communicator.hpp"
#include "runtime/core/memory.hpp"
#include "runtime/core/tensor.hpp"
#include "runtime/model/tensor_plan.hpp"

namespace tessera {

struct LayerWeights {
  std::vector<float> input_norm;              // (E)
  std::vector<float> post_attention_norm;     // (E), Gemma
  std::vector<float> pre_mlp_norm;            // (E)
  std::vector<float> post_mlp_norm;           // (E), Gemma
  std::vector<float> q_norm, k_norm;          // (D), Gemma
  std::vector<float> q_bias, k_bias, v_bias;  // (H·D), (K·D), (K·D), Qwen
  MatrixView q;                               // (H·D, E)
  MatrixView k, v;                            // (K·D, E)
  MatrixView o;                               // (E, H·D)
  MatrixView gate, up;                        // (F, E)
  MatrixView down;                            // (E, F)
};

struct Weights {
  MatrixView embedding;  // (V, E) of this rank's share of the vocabulary
  MatrixView lm_head;    // likewise; the embedding when tied
  std::int64_t first_vocab_row = 0;
  std::vector<float> final_norm;  // (E)
  std::vector<LayerWeights> layers;

  std::int64_t bytes = 0;                // held by this rank, mapped pages included
  std::optional<Checkpoint> checkpoint;  // keeps the mapped files alive
  std::vector<Buffer> owned;
  std::int64_t mapped_bytes = 0;

  Weights() = default;
  Weights(Weights&&) = default;
  Weights& operator=(Weights&&) = default;
};

struct LoadOptions {
  std::optional<std::uint64_t> random_seed;  // draw weights; no checkpoint is read
  bool as_f32 = false;                       // keep fp32 copies; else the file's dtype
  // Below this many bytes a row, every rank would touch every page of a column-split tensor: one rank reads
  // the pages and scatters the slices instead.
  std::int64_t short_row_bytes = 8192;
};

// Collective over tp. InputError names the tensor with both shapes when the checkpoint does not match the
// configuration; nothing is read before all shapes were checked.
Weights load_weights(const std::string& model_dir, const ModelConfig& config, const LoadOptions& options,
                     Communicator& tp, MemoryMeter& meter);

// Reads every byte of the weights once, on all threads, and returns a checksum: what pages of mapped files
// cost is then paid. Independent of the number of threads.
std::uint64_t touch_all(const Weights& weights);

// Values of a random model: center + half_width · u, u uniform in [−1, 1). Variance 1 / fan-in for matrices,
// scales of norms around 1, small biases.
struct RandomValues {
  float center = 0;
  float half_width = 0;
};
RandomValues random_values_of(const TensorSpec& spec, const ModelConfig& config);

// One value is a pure function of (seed, tensor name, global index).
void draw_random(const TensorSpec& spec, const ModelConfig& config, std::uint64_t seed, const Slice& slice,
                 DType dtype, std::byte* target);

}  // namespace tessera
