// Selection by method, on one rank that holds all tokens. Pure functions of the bits of Q and K: dot products
// are fp32 fused multiply-adds over d = 0 … D−1 in that order (each score by itself, so that no vector width
// shows), scaled after the sum; maxima are exact; sums are Fixed; ties break to the lower index. Definitions:
// DESIGN.md section 4.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/fixed_point.hpp"
#include "attention/method.hpp"
#include "attention/selection.hpp"
#include "runtime/core/dtype.hpp"

namespace tessera {

struct SelectInput {
  std::int64_t tokens = 0;          // S
  int heads = 0;                    // H
  int kv_heads = 0;                 // K; head h reads KV head h / (H / K)
  int head_dim = 0;                 // D
  const float* q = nullptr;         // (S, H, D)
  const float* k = nullptr;         // (S, K, D)
  float scale = 0;                  // D^-0.5, or the model's own
  DType model_dtype = DType::kF32;  // snapkv family: window softmax is rounded to it before it is summed
  bool share_group = false;  // importance is summed (ada_snapkv: maximised) over the heads of a KV head
  int layer = 0;             // of `layers`: pyramidkv
  int layers = 1;

  const float* query(std::int64_t token, int head) const { return q + (token * heads + head) * head_dim; }
  const float* key(std::int64_t token, int kv_head) const {
    return k + (token * kv_heads + kv_head) * head_dim;
  }
};

// What a method decided before it was rounded out to pages, for researchers and tests; empty where not of the
// method.
struct NativeDecision {
  std::vector<std::vector<std::int32_t>> columns;    // a head: kept columns, ascending
  std::vector<std::vector<std::int32_t>> diagonals;  // a head: kept offsets, ascending
  std::vector<std::vector<std::vector<std::int32_t>>>
      blocks;  // a head, a query block of the method's edge: KV blocks of that edge
};

struct PrefillChoice {
  PrefillSelection selection;
  NativeDecision native;
};

// streaming (sinks, window), vertical_slash (columns, diagonals, window), block_sparse (blocks, edge),
// flexprefill (alpha, floor, window), xattention (threshold, edge, stride). dense selects everything.
PrefillChoice select_prefill(const SelectInput& input, const MethodSettings& settings);

// Positions that the cache keeps after prefill, a KV head: streaming, snapkv, ada_snapkv, pyramidkv. All
// others keep all.
HeadLists select_kept(const SelectInput& input, const MethodSettings& settings);

// Min and max of each channel over the tokens of each page, and the scores of pages for one query: quest,
// topp_pages.
struct PageBounds {
  std::int64_t pages = 0;  // finished pages: S / 16
  int kv_heads = 0;
  int head_dim = 0;
  std::vector<float> lowest;   // (K, pages, D)
  std::vector<float> highest;  // (K, pages, D)
};
PageBounds page_bounds(const SelectInput& input);

// Pages that the decode step of the last token of `input` reads: q is (1, H, D) of that token, position
// tokens − 1. K lists, or H with per_query_head. The current page (the last one) is always among them.
HeadLists select_pages(const SelectInput& input, const float* q, const PageBounds& bounds,
                       const MethodSettings& settings);

}  // namespace tessera
