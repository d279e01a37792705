// The transformer of every family: one pass for Qwen2, Llama 3 and Gemma 3, whose differences are values of
// ModelConfig. One rank's part of it: heads and MLP are split over tp, tokens of the prompt over sp.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/select.hpp"
#include "io/model_config.hpp"
#include "kvcache/kv_cache.hpp"
#include "parallel/grid.hpp"
#include "parallel/unit_exchange.hpp"
#include "runtime/core/memory.hpp"
#include "runtime/model/attention_plan.hpp"
#include "runtime/model/diagnosis.hpp"
#include "runtime/model/language_model.hpp"
#include "runtime/model/rope_table.hpp"
#include "runtime/model/selection_listener.hpp"
#include "runtime/model/tensor_plan.hpp"
#include "runtime/model/weights.hpp"

namespace tessera {

// Projections and MLP of a prompt go by chunks of this many tokens, so that their workspace does not grow
// with it.
inline constexpr std::int64_t kChunkTokens = 1024;

class Transformer final : public LanguageModel {
 public:
  // max_tokens: the longest sequence, output included. The cache keeps page bounds where the plan's decode
  // method needs them.
  Transformer(const ModelConfig& config, const RopeConfig& rope, const Weights& weights, Grid& grid,
              KvCache& cache, std::int64_t max_tokens, MemoryMeter& meter, const AttentionPlan& plan = {});

  int add_sequence(std::int64_t max_tokens) override { return cache_.add_sequence(max_tokens); }
  void remove_sequence(int sequence) override { cache_.remove_sequence(sequence); }
  void prefill(const PrefillRequest& request, std::vector<float>& logits) override;
  void decode(std::span<const DecodeRow> rows, std::vector<float>& logits) override;
  void greedy_tokens(std::vector<std::int32_t>& tokens) override;

  void set_want_logits(bool want) override { want_logits_ = want; }
  void set_listener(StepListener listener) override { listener_ = std::move(listener); }
  void set_selection_listener(SelectionListener* listener) override { selection_listener_ = listener; }
  void set_ladder(std::span<const MethodSettings> steps, std::vector<PairTotals>* totals) override;
  OpTimes& times() override { return times_; }
  const ExchangeCounts& exchange_counts() const override { return exchange_; }
  const AttentionCounts& attention_counts() const override { return attention_; }
  std::int64_t peak_kv_bytes() const override;
  const HeadShare& share() const { return share_; }

 private:
  struct StepTimer;
  const RopeTable& rope_of(int layer) const;

  void embed(std::span<const std::int32_t> tokens, Phase phase);
  void project_qkv(Phase phase, int layer, std::int64_t first, std::int64_t rows,
                   const std::int32_t* positions, float* q, float* k, float* v);
  void finish_layer(Phase phase, int layer, std::int64_t first, std::int64_t rows);
  void pick_rows(std::span<const std::int32_t> positions, std::span<const std::int64_t> wanted);

  // Prefill of one layer (transformer_prefill.cpp).
  struct Prompt;
  struct Fetch;
  void attend_prompt(const Prompt& prompt, int layer);
  SelectInput select_input(const Prompt& prompt, int layer, const float* keys);
  void climb_ladder(const SelectInput& input);
  Fetch plan_fetch(const Prompt& prompt, int layer, const PrefillSelection* selection);
  void attend_rows(const Prompt& prompt, int layer, const PrefillSelection* selection, float* out,
                   float* lse);
  void count_prompt(const Prompt& prompt, int layer, const PrefillSelection* selection);
  void trim_cache(const Prompt& prompt, int layer, const HeadLists& kept);
  void diagnose_prompt(const Prompt& prompt, int layer, const float* out, const float* lse);

  // Decoding of one layer (transformer_decode.cpp).
  struct Step {                // rows that attend together, and what a mask shows them of the cache
    std::int64_t count = 0;    // N
    const float* q = nullptr;  // (N, H, D)
    const std::int32_t* positions = nullptr;  // (N)
    std::vector<KvView> views;                // (N)
    std::int32_t window = 0;                  // 0: none
    std::int32_t sinks = 0;                   // first keys that are seen beside the window
  };
  void attend_decode(int layer, std::span<const DecodeRow> rows, const std::int32_t* positions);
  std::vector<HeadLists> choose_pages(int layer, const Step& step);
  void attend_step(int layer, const Step& step, const HeadLists* pages, float* out, float* lse);
  void mask_step(int layer, Step& step) const;
  void count_step(int layer, std::span<const DecodeRow> rows, const Step& step,
                  const std::vector<HeadLists>& pages);
  void diagnose_step(int layer, std::span<const DecodeRow> rows, const Step& step, const float* lse);
  struct LastRow {
    std::vector<float> out;  // (H, D)
    std::vector<float> lse;  // (H)
  };
  LastRow attend_last_row(const Prompt& prompt, int layer, bool masked);

  SelectRanks select_ranks();
  DiagnosisShape diagnosis_shape() const {
    return {static_cast<int>(config_.layers), static_cast<int>(share_.heads),
            static_cast<int>(config_.head_dim)};
  }
  void compute_logits(Phase phase, std::int64_t rows, std::vector<float>& logits);
  void all_reduce(Phase phase, int layer, float* data, std::int64_t count);

  const ModelConfig& config_;
  const Weights& weights_;
  Grid& grid_;
  KvCache& cache_;
  HeadShare share_;
  AttentionPlan plan_;
  LayerPlans layers_;
  RopeTable rope_;
  RopeTable local_rope_;  // of window layers; empty where the model has none of its own
  OpTimes times_;
  ExchangeCounts exchange_;
  AttentionCounts attention_;
  SelectionListener* selection_listener_ = nullptr;
  std::span<const MethodSettings> ladder_;
  std::vector<PairTotals>* ladder_totals_ = nullptr;
  StepListener listener_;
  bool want_logits_ = false;

  FloatScratch hidden_;     // (T, E): the residual stream
  FloatScratch queries_;    // (T, H, D)
  FloatScratch attended_;   // (T, H, D)
  FloatScratch normed_;     // (chunk, E)
  FloatScratch kv_rows_;    // (chunk, 2, K, D)
  FloatScratch projected_;  // (chunk, E)
  FloatScratch gate_, up_;  // (chunk, F)
  FloatScratch partial_;    // decode with sp: (R, N, H, D + 1)
  FloatScratch keys_;       // (T, K, D) of one layer, as the cache holds them: what selections are made from
  FloatScratch guest_out_;  // prefill with sp: (T, H, D + 1) over the keys that were fetched
  FloatScratch row_lse_;    // (T, H)
  FloatScratch diagnosed_;  // (T, H, D + 1) of dense attention, beside the selected
  FloatScratch exchanged_;  // prefill with sp: units that leave, then units that came
  FloatScratch last_hidden_;   // (n, E) rows whose logits are wanted
  FloatScratch local_logits_;  // (n, V of this rank)
  std::int64_t logit_rows_ = 0;
  Phase logit_phase_ = Phase::kPrefill;  // of the call that computed them
};

}  // namespace tessera
