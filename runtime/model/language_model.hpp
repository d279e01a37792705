// A model that is ready to answer, wherever it computes: what the generation engine asks of it. One rank's
// part; every call is collective over the group.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "attention/method.hpp"
#include "parallel/partition.hpp"
#include "runtime/core/operation.hpp"
#include "runtime/model/completion.hpp"
#include "runtime/model/op_times.hpp"
#include "runtime/model/selection_listener.hpp"

namespace tessera {

// Told before each step: the watchdog listens.
using StepListener = std::function<void(Phase phase, int layer, Operation operation)>;

struct DecodeRow {
  int sequence = 0;                              // handle in the KV cache
  const SequencePartition* partition = nullptr;  // of its prompt
  std::int32_t position = 0;
  std::int32_t token = 0;
  AttentionCounts* counts = nullptr;   // added to; null: not wanted
  DiagnosisSums* diagnosis = nullptr;  // of this step; null: not wanted
};

struct PrefillRequest {
  int sequence = 0;  // handle in the KV cache
  const SequencePartition* partition = nullptr;
  std::span<const std::int32_t> tokens;           // (S)
  std::span<const std::int64_t> logit_positions;  // ascending
  DiagnosisSums* diagnosis = nullptr;             // null: not wanted
};

// Pairs of this rank's rows and heads over the layers that a method sparsifies.
struct PairTotals {
  std::uint64_t visible = 0;
  std::uint64_t causal = 0;
};

class LanguageModel {
 public:
  virtual ~LanguageModel() = default;

  // A handle, with room for prompt and output. Keys and values are freed when it is given back.
  virtual int add_sequence(std::int64_t max_tokens) = 0;
  virtual void remove_sequence(int sequence) = 0;

  // Runs the prompt and leaves in the cache the keys and values that the decode method keeps. logits: (n, V)
  // of the given positions, on every rank when set_want_logits(true), else left empty.
  virtual void prefill(const PrefillRequest& request, std::vector<float>& logits) = 0;

  // One token of each of N sequences; their keys and values are appended where their block lies.
  // logits: (N, V) on every rank when set_want_logits(true), else left empty.
  virtual void decode(std::span<const DecodeRow> rows, std::vector<float>& logits) = 0;

  // The most likely token of each row whose logits the last call computed; ties to the lower id.
  // NumericalError when a row has NaN or Inf.
  virtual void greedy_tokens(std::vector<std::int32_t>& tokens) = 0;

  virtual void set_want_logits(bool want) = 0;
  virtual void set_listener(StepListener listener) = 0;
  virtual void set_selection_listener(SelectionListener* listener) = 0;  // null: none
  // While set, each sparse layer of a prefill also selects with each of these settings (of the plan's prefill
  // method), and adds what its rows would see to totals, one a step. Null ends it.
  virtual void set_ladder(std::span<const MethodSettings> steps, std::vector<PairTotals>* totals) = 0;

  // Added to by every call, and complete once greedy_tokens has returned.
  virtual OpTimes& times() = 0;
  virtual const ExchangeCounts& exchange_counts() const = 0;    // of the last prefill
  virtual const AttentionCounts& attention_counts() const = 0;  // likewise; complete as the times are
  virtual std::int64_t peak_kv_bytes() const = 0;               // of slots in use, bounds included
};

}  // namespace tessera
