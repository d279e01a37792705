// Tensor operations of a transformer, fp32 on the CPU. Rows are independent; every array is contiguous unless
// a stride is given.
#pragma once

#include <cstdint>

#include "runtime/core/device.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera {

// y = x / sqrt(mean(x²) + eps) · (weight + weight_offset), over rows of `columns` (Zhang & Sennrich 2019).
// Gemma stores w − 1: weight_offset = 1.
struct RmsNormParams {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  const float* x = nullptr;       // (rows, columns), rows x_stride floats apart
  std::int64_t x_stride = 0;      // 0: columns
  const float* weight = nullptr;  // (columns)
  float weight_offset = 0;
  float eps = 0;
  float* y = nullptr;         // (rows, columns), rows y_stride apart; may be x
  std::int64_t y_stride = 0;  // 0: columns
  StreamView stream;
};
void rms_norm(const RmsNormParams& p);

// Rotary embedding, half-split (rotate_half): for i < D/2,
//   y[i] = x[i]·cos[p,i] − x[i+D/2]·sin[p,i],  y[i+D/2] = x[i+D/2]·cos[p,i] + x[i]·sin[p,i].
// In place. cos and sin come from a table over positions, computed by rope_table.
struct RopeParams {
  std::int64_t tokens = 0;  // T
  int heads = 0;
  int head_dim = 0;                         // D
  float* x = nullptr;                       // (T, heads, D), tokens row_stride floats apart
  std::int64_t row_stride = 0;              // 0: heads · D
  const std::int32_t* positions = nullptr;  // (T)
  const float* cosines = nullptr;           // (positions, D/2)
  const float* sines = nullptr;             // (positions, D/2)
  StreamView stream;
};
void apply_rope(const RopeParams& p);

enum class Activation : std::uint8_t { kSilu, kGeluTanh };

// y = act(gate) · up, elementwise; gelu by its tanh form.
struct GatedActivationParams {
  std::int64_t count = 0;
  const float* gate = nullptr;
  const float* up = nullptr;
  float* y = nullptr;  // may be gate or up
  Activation activation = Activation::kSilu;
  StreamView stream;
};
void gated_activation(const GatedActivationParams& p);

// y += x over count floats.
void add_in_place(float* y, const float* x, std::int64_t count, StreamView stream);

// Rows of an embedding table: out[t] = table[tokens[t] − first_row] · scale, or 0 where the row is not in
// this slice.
struct EmbedParams {
  std::int64_t tokens_count = 0;         // T
  const std::int32_t* tokens = nullptr;  // (T)
  MatrixView table;                      // (rows of this slice, E)
  std::int64_t first_row = 0;
  float scale = 1;
  float* out = nullptr;  // (T, E)
  StreamView stream;
};
void embed_rows(const EmbedParams& p);

// The largest of count values and its index; ties break to the lower index. NaN: index −1. count ≥ 1.
struct Maximum {
  float value;
  std::int64_t index;
};
Maximum argmax(const float* values, std::int64_t count);

}  // namespace tessera
