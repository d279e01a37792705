// The weights of one tp rank on a device, in one dtype and one allocation. Projections that read the same
// activations lie behind each other, so that one product makes them all. Needs no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/model_config.hpp"
#include "runtime/core/cuda_memory.hpp"
#include "runtime/core/device.hpp"
#include "runtime/core/dtype.hpp"
#include "runtime/core/memory.hpp"

namespace tessera::cuda {

// Device pointers; null: the family has none.
struct DeviceLayerWeights {
  const std::byte* input_norm = nullptr;           // (E)
  const std::byte* post_attention_norm = nullptr;  // (E), Gemma
  const std::byte* pre_mlp_norm = nullptr;         // (E)
  const std::byte* post_mlp_norm = nullptr;        // (E), Gemma
  const std::byte* q_norm = nullptr;               // (D), Gemma
  const std::byte* k_norm = nullptr;
  const std::byte* q_bias = nullptr;  // (H·D), Qwen
  const std::byte* k_bias = nullptr;  // (K·D)
  const std::byte* v_bias = nullptr;
  const std::byte* qkv = nullptr;      // (H·D + 2·K·D, E): q, then k, then v
  const std::byte* o = nullptr;        // (E, H·D)
  const std::byte* gate_up = nullptr;  // (2·F, E): gate, then up
  const std::byte* down = nullptr;     // (E, F)
};

struct DeviceWeights {
  DType dtype = DType::kBF16;
  const std::byte* embedding = nullptr;   // (V of this rank, E)
  const std::byte* lm_head = nullptr;     // likewise; the embedding when tied
  const std::byte* final_norm = nullptr;  // (E)
  std::int64_t first_vocab_row = 0;
  std::int64_t vocab_rows = 0;
  std::vector<DeviceLayerWeights> layers;

  DeviceBuffer storage;
  std::int64_t bytes() const { return static_cast<std::int64_t>(storage.bytes()); }
  std::size_t uploaded_bytes = 0;  // through pinned chunks, and the time it took
  double upload_seconds = 0;
};

struct DeviceLoadOptions {
  Device device;
  DType dtype = DType::kBF16;                // bf16 or f16; files of another dtype are rounded to it
  std::optional<std::uint64_t> random_seed;  // draw weights; no checkpoint is read
  int tp_rank = 0;
  int tp_size = 1;
};

// InputError as load_weights. Drawn weights have the values that load_weights draws, rounded to dtype.
DeviceWeights load_device_weights(const std::string& model_dir, const ModelConfig& config,
                                  const DeviceLoadOptions& options, MemoryMeter& meter);

}  // namespace tessera::cuda
