// What a run would take and how long, on every grid of tp × sp × dp ranks: a pure function of what is asked
// and of the machine. Counts of operations and bytes are those that a trace records (runtime/model/
// accounting.hpp), so that the two compare.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "io/model_config.hpp"
#include "jobs/model_setup.hpp"
#include "jobs/plan/machine.hpp"
#include "parallel/grid.hpp"
#include "runtime/core/dtype.hpp"
#include "runtime/model/accounting.hpp"
#include "runtime/model/attention_plan.hpp"

namespace tessera {

// What the sparse layers of one phase leave out, and how that is known.
enum class SparsitySource : std::uint8_t { kExact, kTarget, kStudy, kEstimate, kUnknown };
std::string_view name_of(SparsitySource source);
struct PhaseSparsity {
  double value = 0;  // share of the causal pairs, or of the tokens of a dense cache; kUnknown: 0, as if dense
  SparsitySource source = SparsitySource::kExact;
};

struct PlanProblem {
  ModelConfig config;
  AttentionPlan attention;
  PhaseSparsity prefill, decode;
  KeptWeights weights;
  std::int64_t length = 0;         // tokens of a prompt
  std::int64_t output_tokens = 1;  // of an answer; the first comes from the prefill
  int batch = 1;
  bool on_gpu = false;        // the CUDA backend's memory; else the CPU's
  DType dtype = DType::kF32;  // of activations
  DType kv_dtype = DType::kF32;
  int ranks = 1;
  int tp = 0, sp = 0, dp = 0;  // 0: any that divide the ranks

  std::int64_t decode_steps() const { return output_tokens > 2 ? output_tokens - 1 : 1; }
  double step_tokens() const;  // mean length of a dense cache over the decode steps
};

// How decoding is spread over the tp·sp ranks of a replica.
struct DecodeGrid {
  int weights = 1;    // ranks among which the weights are split
  int kv_heads = 1;   // … and the KV heads (fewer than weights where heads are replicated)
  int kv_tokens = 1;  // … and the tokens of each
};

// Of the rank that has most. Bytes and operations of prefill are of one prompt, those of decode of one step
// of the whole batch.
struct GridPlan {
  GridShape shape;
  DecodeGrid decode;

  // memory, bytes
  double weights = 0;
  double kv = 0;       // set aside, for the worst that a run of this shape may need
  double kv_used = 0;  // of it filled, at its highest, by prompts of the full length
  double workspace = 0;
  double missing = 0;  // beyond what a rank may take; 0 or less: it fits
  double memory() const { return weights + kv + workspace; }
  bool fits() const { return missing <= 0; }

  // prefill
  double flops_linear = 0, flops_attention = 0, flops_estimate = 0;
  double bytes_passes = 0;      // activations that norms, rope and the MLP's product of two read and write
  double bytes_needed = 0;      // keys and values of others that its rows see, by the stated assumption
  double bytes_full = 0;        // an all-gather
  double bytes_exchanged = 0;   // whichever --exchange takes
  double bytes_reshard = 0;     // keys and values from tokens to heads, once, for decoding
  double bytes_all_reduce = 0;  // of tensor parallelism
  // decode
  double step_weights = 0, step_kv = 0, step_estimator = 0;  // bytes read
  double step_flops = 0;
  double step_exchanged = 0;  // bytes received: all-reduces, partial results of split tokens

  // seconds; NaN where the machine's rates are not known
  double linear_s = kUnknown, passes_s = kUnknown, attention_s = kUnknown, estimate_s = kUnknown;
  double exchange_s = kUnknown, all_reduce_s = kUnknown;
  double prefill_s = kUnknown;  // of one prompt
  double step_s = kUnknown;     // of one token of each sequence of the batch
  double sample_s = kUnknown;   // of one sample, all ranks working: what the grids are ordered by

  static constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
};

struct Plan {
  SampleCost cost;  // of one sample, in the definitions of the trace
  double weight_bytes = 0;
  double kv_bytes_token = 0;      // of the whole model: K and V of all layers, before any eviction
  std::vector<GridPlan> grids;    // those that fit first, then the fastest, then the least memory
  std::int64_t memory_limit = 0;  // bytes a rank; 0: none is known
  bool any_fits() const { return !grids.empty() && grids.front().fits(); }
};

Plan make_plan(const PlanProblem& problem, const Machine& machine);

// The one-sample cost alone: predicted counts put through the accounting of the trace.
SampleCost predict_cost(const PlanProblem& problem);

// The grid of the fewest ranks (dp = 1) on which the same problem fits, at most `most` of them.
std::optional<GridShape> least_grid(const PlanProblem& problem, const Machine& machine, int most = 1024);
// The longest prompt that fits on the ranks of the problem with the same native budgets; 0: none does.
std::int64_t longest_length(const PlanProblem& problem, const Machine& machine);

}  // namespace tessera
