// Softmax of the last queries of a prompt over its keys, summed by key and by diagonal, on a Hopper GPU: the
// counterpart of attention/window_scores.hpp. Scores are never held: one pass finds what each row of the
// window sums to, another computes the probabilities anew and adds them on the chip. What comes out is a pure
// function of the bits of Q and K, whatever the grid:
//   s_ij    products on the tensor core, fp32, d ascending 16 at a time
//   L_i     log2 Σ_j 2^(c·s_ij), c = scale · log2 e: the sums of chunks of 128 keys (position / 128), each
//           relative to its own maximum and added in one order, join as Fixed
//   p_ij    2^(c·s_ij − L_i), fp32
//   groups of 16 keys (position / 16) by 128 rows of the window are summed by key and by diagonal in fp32, in
//   one order, and those sums join as Fixed
// Methods that keep tokens want sums by key alone, of probabilities rounded to the dtype of the model, or the
// largest of them; these are rounded after the exponential.
// Sums differ from exact ones by about 1e-6 relative where logits are below 30, and more in proportion above.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/fixed_point.hpp"
#include "kvcache/kv_view.hpp"
#include "runtime/core/device.hpp"

namespace tessera::cuda {

enum class WindowUse : std::uint8_t {
  kLines,    // vertical_slash, flexprefill: by key and by diagonal
  kTokens,   // snapkv, pyramidkv: by key, p rounded to the dtype
  kLargest,  // ada_snapkv: the largest p of each key, rounded likewise
};

struct WindowSumsProblem {
  std::int64_t tokens = 0;   // S, at most 2^22
  int heads = 0;             // H; head h reads KV head h / (H / K)
  int kv_heads = 0;          // K
  int head_dim = 0;          // D: 64, 128 or 256
  std::int64_t window = 0;   // w: the last min(w, S) queries count
  bool share_group = false;  // the heads of a KV head are summed, or compared
  WindowUse use = WindowUse::kLines;

  constexpr int lists() const { return share_group ? kv_heads : heads; }
  constexpr std::int64_t rows() const { return window < tokens ? window : tokens; }
};

// All pointers are of the device, also those in kv.
struct DeviceWindowSumsParams {
  WindowSumsProblem problem;
  const void* q = nullptr;  // (rows, H, D) of the last positions, dtype of kv: bf16 or fp16; aligned to 16
  std::int64_t q_row_stride = 0;  // elements, a multiple of 8
  KvView kv;                      // not packed; every block held
  std::int64_t pool_slots = 0;    // slots in the pool behind kv.slots
  float scale = 0;                // > 0
  void* workspace = nullptr;      // window_sums_workspace bytes, aligned to 16; contents do not matter
  Fixed* columns = nullptr;       // (lists, S): [j] = Σ_i p_ij
  Fixed* diagonals = nullptr;     // (lists, S): [o] = Σ_i p_i,pos_i−o; kLines alone
  StreamView stream;
};

std::size_t window_sums_workspace(const WindowSumsProblem& problem);

// ResourceError where the device is not of compute capability 9.0.
void window_sums_on_device(const DeviceWindowSumsParams& p);

}  // namespace tessera::cuda
