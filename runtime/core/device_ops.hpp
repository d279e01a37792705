// Tensor operations of a transformer on the device, beside those of ops.hpp: bf16 or fp16 activations, fp32
// arithmetic. Pointers are of the device. Strides count elements, and 0 means contiguous rows. Where pointers
// and strides allow 16-byte accesses these are used; any others work too, slower. Needs no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/core/device.hpp"
#include "runtime/core/dtype.hpp"
#include "runtime/core/ops.hpp"

namespace tessera::cuda {

// y = x / sqrt(mean(x²) + eps) · (weight + weight_offset), over rows of `columns`, in fp32. With
// weight_offset 0 the normed value is rounded to dtype before it meets the weight, as the reference of these
// families does; with another offset (Gemma: 1) only the result is rounded.
struct RmsNormParams {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  DType dtype = DType::kBF16;
  const void* x = nullptr;  // (rows, columns)
  std::int64_t x_stride = 0;
  const void* weight = nullptr;  // (columns)
  float weight_offset = 0;
  float eps = 0;
  void* y = nullptr;  // (rows, columns); may be x
  std::int64_t y_stride = 0;
  StreamView stream;
};
void rms_norm(const RmsNormParams& p);

// What stands between two branches of a layer, in one pass:
//   residual += post_weight ? rms_norm(x, post_weight) : x    (Gemma norms a branch before it is added)
//   y = rms_norm(residual, weight)                            (unless weight is null)
// The branch, normed, and the sum are rounded to dtype.
struct AddNormParams {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  DType dtype = DType::kBF16;
  const void* x = nullptr;            // (rows, columns), contiguous
  const void* post_weight = nullptr;  // (columns), or null
  void* residual = nullptr;           // (rows, columns), contiguous
  const void* weight = nullptr;       // (columns), or null
  float weight_offset = 0;            // of both weights
  float eps = 0;
  void* y = nullptr;  // (rows, columns), contiguous; may be x
  StreamView stream;
};
void add_norm(const AddNormParams& p);

// From the projections to attention: bias, norm of each head of q and k, rotary embedding (half-split), rows
// of K and V into the slots of the paged cache, and the bounds of the pages that they fall into.
//
// A slot holds K (64, D), then V (64, D). Row r of KV head k of sequence s lies at r % 64 of slot
// table[s·table_sequence_stride + k·table_stride + r / 64]; where that is negative nothing is stored. A token
// at a negative position is padding: nothing is written for it.
struct QkvParams {
  std::int64_t tokens = 0;  // T
  int heads = 0;            // H
  int kv_heads = 0;         // K
  int head_dim = 0;         // D: 64, 128 or 256
  DType dtype = DType::kBF16;
  const void* q = nullptr;  // (T, H, D)
  std::int64_t q_stride = 0;
  const void* k = nullptr;  // (T, K, D)
  const void* v = nullptr;  // (T, K, D)
  std::int64_t kv_stride = 0;
  const void* q_bias = nullptr;  // (H, D), or null; likewise
  const void* k_bias = nullptr;  // (K, D)
  const void* v_bias = nullptr;  // (K, D)
  const void* q_norm = nullptr;  // (D): weight of the norm of each head before rope, or null; likewise
  const void* k_norm = nullptr;
  float norm_offset = 0;
  float norm_eps = 0;
  const std::int32_t* positions = nullptr;  // (T), ascending within a sequence
  const float* cosines = nullptr;           // (positions, D/2)
  const float* sines = nullptr;             // (positions, D/2)
  void* q_out = nullptr;                    // (T, H, D); may be q
  std::int64_t q_out_stride = 0;

  std::byte* slots = nullptr;
  std::size_t slot_bytes = 0;  // 2 · 64 · D elements
  const std::int32_t* table = nullptr;
  std::int64_t table_stride = 0;
  // A step of decoding: the sequence of each token, no two of the same; null: all tokens are of one sequence.
  const std::int32_t* sequences = nullptr;  // (T)
  std::int64_t table_sequence_stride = 0;
  // Rows that each head holds so far, where they are packed and row is not position: (N, K). Token t of one
  // sequence goes to row rows_of_head + t. Not moved on here. Null: the row is the position.
  const std::int64_t* rows_of_head = nullptr;
  // (slots, 4 pages, 2, D): lowest and highest key of each channel of a page's rows so far, as stored; or
  // null. Rows of a page arrive in ascending order, its first (position % 16 = 0) starts it. Not with packed
  // rows.
  std::byte* bounds = nullptr;
  StreamView stream;
};
void qkv_to_cache(const QkvParams& p);

// y = act(gate) · up over rows of `columns`; gelu by its tanh form. gate and up may be halves of one array.
struct GatedActivationParams {
  std::int64_t rows = 0;
  std::int64_t columns = 0;  // F
  DType dtype = DType::kBF16;
  const void* gate = nullptr;  // (rows, columns)
  const void* up = nullptr;    // (rows, columns)
  std::int64_t in_stride = 0;  // of both
  void* y = nullptr;           // (rows, columns); may be gate or up
  std::int64_t y_stride = 0;
  Activation activation = Activation::kSilu;
  StreamView stream;
};
void gated_activation(const GatedActivationParams& p);

// out[t] = table[tokens[t] − first_row] · scale, or 0 where the row is not in this slice of the vocabulary.
struct EmbedParams {
  std::int64_t tokens_count = 0;         // T
  const std::int32_t* tokens = nullptr;  // (T)
  const void* table = nullptr;           // (rows, columns)
  std::int64_t rows = 0;                 // of this slice
  std::int64_t columns = 0;              // E
  DType dtype = DType::kBF16;
  std::int64_t first_row = 0;
  float scale = 1;
  void* out = nullptr;  // (T, columns)
  StreamView stream;
};
void embed_rows(const EmbedParams& p);

// The largest value of each row and its index; ties go to the lower index. A row with a NaN: value NaN, index
// −1.
struct ArgmaxParams {
  std::int64_t rows = 0;
  std::int64_t columns = 0;      // V of this slice, at least 1
  DType dtype = DType::kF32;     // of the logits: any
  const void* logits = nullptr;  // (rows, columns)
  std::int64_t stride = 0;
  std::int64_t first_column = 0;    // index of column 0 in the whole vocabulary
  std::uint64_t* keys = nullptr;    // (rows): workspace
  std::int32_t* indices = nullptr;  // (rows)
  float* values = nullptr;          // (rows), or null
  StreamView stream;
};
void argmax_rows(const ArgmaxParams& p);
// The same in two steps, between which several ranks with a part of the columns each may agree: keys of one
// row compare as unsigned integers, and the largest over the ranks is the key of the whole row.
void argmax_keys(const ArgmaxParams& p);
void argmax_of_keys(const ArgmaxParams& p);

// Any of the three dtypes to any; rounds to nearest even.
void convert(const void* source, DType source_dtype, void* target, DType target_dtype, std::int64_t count,
             StreamView stream);

// A slice of a matrix of random values, to the bit what the CPU draws for it (random.hpp): element (r, c) of
// the whole matrix is center + half_width · u, u uniform in [−1, 1) from the counter r · whole_columns + c.
struct DrawParams {
  std::int64_t rows = 0;  // of the slice
  std::int64_t columns = 0;
  std::int64_t row_begin = 0;
  std::int64_t column_begin = 0;
  std::int64_t whole_columns = 0;
  std::uint64_t seed = 0;
  std::uint64_t random_stream = 0;
  float center = 0;
  float half_width = 0;
  DType dtype = DType::kBF16;  // any
  void* target = nullptr;      // (rows, columns)
  StreamView stream;
};
void draw_uniform(const DrawParams& p);

// values[i] += 1: positions and row counts after a step of decoding, inside its graph.
void increment(std::int32_t* values, std::int64_t count, StreamView stream);
void increment(std::int64_t* values, std::int64_t count, StreamView stream);

}  // namespace tessera::cuda
