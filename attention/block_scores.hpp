// Scores of key blocks for query blocks: the importance of block_sparse and xattention.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/fixed_point.hpp"

namespace tessera {

// Means over blocks of `edge` tokens: rows added in order in fp32, then divided by their number (the last
// block may be short). Blocks are aligned, so that a rank that holds whole blocks computes its share of them.
// x: (tokens, heads, D); means: (heads, ceil(tokens / edge), D).
void pool_blocks(const float* x, std::int64_t tokens, int heads, int head_dim, std::int64_t edge,
                 float* means);

// scores[i, j] = Σ_d q[i, d] · k[j, d] over block means, fp32 fused multiply-adds with d ascending; no scale,
// no softmax.
class PooledKeys {
 public:
  // means: (blocks, D) of one KV head.
  PooledKeys(const float* means, std::int64_t blocks, int head_dim);
  std::int64_t blocks() const { return blocks_; }
  std::int64_t row_stride() const { return stride_; }  // of scores: blocks rounded up
  // Rows of query means (rows, D) against key blocks 0 … visible − 1; scores: (rows, row_stride()). Adds to
  // what is there when `add`.
  void score(const float* q, std::int64_t rows, std::int64_t visible, bool add, float* scores) const;

 private:
  std::int64_t blocks_;
  int head_dim_;
  std::int64_t stride_;
  std::vector<float> transposed_;  // (D, stride)
};

// Antidiagonal scores of XAttention (Xu et al. 2025, their reference with select mode "inverse"). Tokens form
// groups of `stride`; query group a and key group b ≤ a have
//   s_ab = scale / stride · Σ_u Σ_d q[a·stride + stride − 1 − u, d] · k[b·stride + u, d]     u, then d
//   ascending; tokens past
// the end are zeros. Softmax over b as in attention/window_scores.hpp, and a pair of blocks of `edge` tokens
// gets
//   Σ to_fixed(p_ab) over its groups, so that the scores of one row of blocks add up to its number of query
//   groups.
struct AntidiagonalProblem {
  std::int64_t tokens = 0;   // S
  int heads = 0;             // H
  int kv_heads = 0;          // K
  int head_dim = 0;          // D
  const float* q = nullptr;  // (S, H, D)
  const float* k = nullptr;  // (S, K, D)
  float scale = 0;
  std::int64_t edge = 128;  // a multiple of stride, at most 64 strides; divides 64 · stride
  std::int64_t stride = 8;

  std::int64_t groups() const { return (tokens + stride - 1) / stride; }
  std::int64_t blocks() const { return (tokens + edge - 1) / edge; }
  std::int64_t blocks_a_tile() const { return 64 * stride / edge; }
};
// Rows tile · blocks_a_tile() … of the matrix of one head, added to sums (blocks_a_tile(), blocks()).
// Workspace keeps its memory from call to call.
void antidiagonal_scores(const AntidiagonalProblem& problem, int head, std::int64_t tile,
                         std::vector<float>& workspace, Fixed* sums);

}  // namespace tessera
