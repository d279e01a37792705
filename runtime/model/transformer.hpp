// The transformer of every family: one pass for Qwen2, Llama 3 and Gemma 3, whose differences are values of
// ModelConfig. One rank's part of it: heads and MLP are split over tp, tokens of the prompt over sp.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "io/model_config.hpp"
#include "kvcache/kv_cache.hpp"
#include "parallel/grid.hpp"
#include "parallel/partition.hpp"
#include "runtime/core/memory.hpp"
#include "runtime/model/completion.hpp"
#include "runtime/model/op_times.hpp"
#include "runtime/model/rope_table.hpp"
#include "runtime/model/tensor_plan.hpp"
#include "runtime/model/weights.hpp"

namespace tessera {

// Told before each step: the watchdog listens.
using StepListener = std::function<void(Phase phase, int layer, Operation operation)>;

struct DecodeRow {
  int sequence = 0;                              // handle in the KV cache
  const SequencePartition* partition = nullptr;  // of its prompt
  std::int32_t position = 0;
  std::int32_t token = 0;
};

// Projections and MLP of a prompt go by chunks of this many tokens, so that their workspace does not grow
// with it.
inline constexpr std::int64_t kChunkTokens = 1024;

class Transformer {
 public:
  // max_tokens: the longest sequence, output included.
  Transformer(const ModelConfig& config, const RopeConfig& rope, const Weights& weights, Grid& grid,
              KvCache& cache, std::int64_t max_tokens, MemoryMeter& meter);

  // Runs the prompt and leaves its keys and values in the cache. logits: (n, V) of the given positions
  // (ascending), on every rank when set_want_logits(true), else left empty. Collective over the group.
  void prefill(int sequence, const SequencePartition& partition, std::span<const std::int32_t> tokens,
               std::span<const std::int64_t> logit_positions, std::vector<float>& logits);

  // One token of each of N sequences; their keys and values are appended where their block lies.
  // logits: (N, V) on every rank when set_want_logits(true), else left empty. Collective over the group.
  void decode(std::span<const DecodeRow> rows, std::vector<float>& logits);

  // The most likely token of each row whose logits the last call computed; ties to the lower id.
  // NumericalError when a row has NaN or Inf.
  void greedy_tokens(std::vector<std::int32_t>& tokens);

  void set_want_logits(bool want) { want_logits_ = want; }
  void set_listener(StepListener listener) { listener_ = std::move(listener); }
  OpTimes& times() { return times_; }                                  // added to by every call
  const ExchangeCounts& exchange_counts() const { return exchange_; }  // of the last prefill
  const HeadShare& share() const { return share_; }

 private:
  struct StepTimer;
  const RopeTable& rope_of(int layer) const;

  void embed(std::span<const std::int32_t> tokens, Phase phase);
  void project_qkv(Phase phase, int layer, std::int64_t first, std::int64_t rows,
                   const std::int32_t* positions, float* q, float* k, float* v);
  void finish_layer(Phase phase, int layer, std::int64_t first, std::int64_t rows);
  void pick_rows(std::span<const std::int32_t> positions, std::span<const std::int64_t> wanted);
  void gather_guests(int sequence, int layer, const SequencePartition& partition);
  void attend_decode(int layer, std::span<const DecodeRow> rows, const std::int32_t* positions);
  void compute_logits(Phase phase, std::int64_t rows, std::vector<float>& logits);
  void all_reduce(Phase phase, int layer, float* data, std::int64_t count);

  const ModelConfig& config_;
  const Weights& weights_;
  Grid& grid_;
  KvCache& cache_;
  HeadShare share_;
  RopeTable rope_;
  RopeTable local_rope_;  // of window layers; empty where the model has none of its own
  OpTimes times_;
  ExchangeCounts exchange_;
  StepListener listener_;
  bool want_logits_ = false;

  FloatScratch hidden_;        // (T, E): the residual stream
  FloatScratch queries_;       // (T, H, D)
  FloatScratch attended_;      // (T, H, D)
  FloatScratch normed_;        // (chunk, E)
  FloatScratch kv_rows_;       // (chunk, 2, K, D)
  FloatScratch projected_;     // (chunk, E)
  FloatScratch gate_, up_;     // (chunk, F)
  FloatScratch partial_;       // decode with sp: (R, N, H, D + 1)
  FloatScratch exchanged_;     // prefill with sp: blocks of one KV head, this rank's, then all ranks'
  FloatScratch last_hidden_;   // (n, E) rows whose logits are wanted
  FloatScratch local_logits_;  // (n, V of this rank)
  std::int64_t logit_rows_ = 0;
  Phase logit_phase_ = Phase::kPrefill;  // of the call that computed them
};

// What a Transformer allocates on the rank that needs most, for one sequence at a time in prefill.
std::int64_t workspace_bytes_needed(const ModelConfig& config, const GridShape& shape,
                                    std::int64_t prompt_tokens, std::int64_t max_tokens, DType kv_dtype);

}  // namespace tessera
