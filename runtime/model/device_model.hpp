// The transformer of every family on GPUs: the counterpart of Transformer for one rank of a tensor-parallel
// group (sp = 1), in bf16 or fp16 with fp32 accumulation. Prefill goes layer by layer, projections and MLP by
// chunks of the prompt; of the last layer only the rows from the first one whose logits are asked for. A
// decode step is one CUDA graph for each number of sequences, collectives included. Needs no CUDA header.
//
// Ranks of a group (tensor_plan.hpp says who holds what) sum the residual stream's new part after the
// embedding, the output projection and the MLP, and agree on the best token by the maximum of all parts of
// the vocabulary. Collectives run in the stream of the kernels.
//
// What it runs: prefill dense, with the model's own windows, streaming, vertical_slash, flexprefill and
// block_sparse; decode dense, streaming, quest, and after eviction by snapkv, ada_snapkv or pyramidkv.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "attention/block_select_cuda.hpp"
#include "attention/decode_cuda.hpp"
#include "attention/page_select_cuda.hpp"
#include "attention/selection.hpp"
#include "attention/slash_select_cuda.hpp"
#include "attention/sparse_prefill_cuda.hpp"
#include "attention/window_sums_cuda.hpp"
#include "io/model_config.hpp"
#include "kvcache/device_kv_cache.hpp"
#include "parallel/nccl_communicator.hpp"
#include "runtime/core/cuda_graph.hpp"
#include "runtime/core/cuda_memory.hpp"
#include "runtime/core/cuda_stream.hpp"
#include "runtime/core/device_gemm.hpp"
#include "runtime/core/memory.hpp"
#include "runtime/model/attention_plan.hpp"
#include "runtime/model/device_clock.hpp"
#include "runtime/model/device_weights.hpp"
#include "runtime/model/language_model.hpp"

namespace tessera::cuda {

// The ranks that share heads, MLP and vocabulary of one model; by itself: one rank.
struct TensorRanks {
  int rank = 0;
  int size = 1;
  NcclCommunicator* device = nullptr;  // of several ranks: both
  Communicator* host = nullptr;
};

// In which type ranks add up their parts of a product. As the model's: half the bytes, but each part and each
// partial sum is rounded. As fp32: rounded once, as on one rank.
enum class SumType : std::uint8_t { kModel, kF32 };

struct DeviceModelShape {
  Device device;
  std::int64_t kv_slots = 0;    // as kv_slots_needed plans them
  std::int64_t max_tokens = 0;  // of a sequence, output included
  int batch = 1;                // sequences that decode together, up to 64
  // Off: every step launches its kernels one by one. For tests.
  bool graphs = true;
  TensorRanks tp;
  SumType sums = SumType::kF32;
};

inline constexpr int kMostDecodeRows = 64;

// Tokens of a prompt that go through projections and MLP together.
inline constexpr std::int64_t kDeviceChunkTokens = 4096;

// Rows of the window by which eviction estimates on the device; longer ones go to the host.
inline constexpr std::int64_t kMostDeviceWindow = 2048;

// Of a batch size: how many steps one measured breakdown serves.
inline constexpr int kStepsBetweenClocks = 32;

// UsageError where the device cannot run the model or a method of the plan.
void check_device_model(const ModelConfig& config, const AttentionPlan& plan, const DeviceModelShape& shape);

class DeviceModel final : public LanguageModel {
 public:
  // Weights, KV cache and activations have the dtype of the weights, which are those of this rank. config is
  // that of the whole model. Everything referred to must outlive the model.
  DeviceModel(const ModelConfig& config, const RopeConfig& rope, const DeviceWeights& weights,
              const DeviceModelShape& shape, MemoryMeter& meter, const AttentionPlan& plan = {});
  ~DeviceModel() override;

  int add_sequence(std::int64_t max_tokens) override;
  void remove_sequence(int sequence) override;
  void prefill(const PrefillRequest& request, std::vector<float>& logits) override;
  void decode(std::span<const DecodeRow> rows, std::vector<float>& logits) override;
  void greedy_tokens(std::vector<std::int32_t>& tokens) override;

  void set_want_logits(bool want) override { want_logits_ = want; }
  void set_listener(StepListener listener) override { listener_ = std::move(listener); }
  void set_selection_listener(SelectionListener* listener) override { selection_listener_ = listener; }
  void set_ladder(std::span<const MethodSettings> steps, std::vector<PairTotals>* totals) override;

  // Device time by events. A decode step that is replayed is timed as a whole; every kStepsBetweenClocks-th
  // step of a batch size runs with events between its operations instead, and the steps that follow it are
  // divided in its proportions.
  OpTimes& times() override { return times_; }
  const ExchangeCounts& exchange_counts() const override { return exchange_; }
  const AttentionCounts& attention_counts() const override { return attention_; }
  std::int64_t peak_kv_bytes() const override;

  DeviceKvCache& cache() { return *cache_; }

 private:
  // Activations of some rows, in dtype.
  struct Rows {
    std::byte* hidden = nullptr;     // (T, E): the residual stream
    std::byte* normed = nullptr;     // (T, E)
    std::byte* qkv = nullptr;        // (T, H·D + 2·K·D)
    std::byte* queries = nullptr;    // (T, H·D)
    std::byte* attended = nullptr;   // (T, H·D)
    std::byte* projected = nullptr;  // (T, E)
    std::byte* gate_up = nullptr;    // (T, 2·F)
    std::byte* activated = nullptr;  // (T, F)
    std::byte* partial = nullptr;    // (T, E) fp32: of several ranks that add up in fp32
  };
  struct LinearShape {
    std::int64_t rows = 0;     // T
    std::int64_t inner = 0;    // columns of x
    std::int64_t columns = 0;  // of y
  };
  // What the time of a layer's parts is charged to.
  struct LayerCall {
    Phase phase = Phase::kPrefill;
    int layer = 0;
    DeviceClock* clock = nullptr;  // null: nobody measures
  };
  struct Ropes {
    DeviceBuffer values;  // cosines (positions, D/2), then sines
    const float* cosines = nullptr;
    const float* sines = nullptr;
  };
  // Where the rows of K and V go, beside the projections.
  struct Target {
    const std::int32_t* positions = nullptr;
    const std::int32_t* table = nullptr;
    const std::int32_t* sequences = nullptr;  // null: all rows are of one
    const std::int64_t* rows_of_head = nullptr;
  };
  // A set of layers whose lists of keys have the same numbers of pages at every step, so that one plan serves
  // them.
  struct PlanGroup {
    enum class Kind { kWindow, kPages, kPacked } kind = Kind::kWindow;
    std::int32_t window = 0;  // 0: dense
    std::int32_t sinks = 0;
    int layer = 0;  // kPacked: whose rows are counted
    int lists = 0;  // of a sequence
    DeviceBuffer plan;
  };
  // Decoding of N sequences together.
  struct Step {
    CudaGraph plain;
    CudaGraph timed;
    std::unique_ptr<DeviceClock> clock;  // of `timed`
    OpTimes shares;                      // of the last timed step, together 1
    std::int64_t steps = 0;
  };

  Ropes upload_rope(const RopeConfig& rope);
  const Ropes& rope_of(int layer) const;
  std::int64_t q_width() const { return config_.heads * config_.head_dim; }
  std::int64_t kv_width() const { return config_.kv_heads * config_.head_dim; }
  std::int64_t qkv_width() const { return q_width() + 2 * kv_width(); }
  std::size_t bytes_of(std::int64_t elements) const;
  void mark(DeviceClock* clock, Phase phase, int layer, Operation operation);

  // device_model_cuda.cu
  void make_plans();
  void make_step_buffers();
  void reserve_results(std::int64_t rows);
  void embed(const LayerCall& call, std::int64_t count, const std::int32_t* tokens, std::byte* hidden);
  void linear(const LinearShape& shape, const std::byte* x, const std::byte* weight, void* y, DType y_dtype);
  void norm(std::int64_t count, const std::byte* x, const std::byte* weight, std::byte* y);
  void add_norm(std::int64_t count, const Rows& rows, const std::byte* post_weight, const std::byte* weight);
  void project(int layer, std::int64_t count, const Rows& rows, const Target& target);
  void finish_layer(const LayerCall& call, std::int64_t count, const Rows& rows, const std::byte* next_norm);
  void compute_logits(const LayerCall& call, std::int64_t count, const std::byte* normed, float* logits);
  void fetch_results(std::int64_t count, const float* logits, std::vector<float>& into);
  void collect_times();
  void adopt_step_times(const DeviceClock& clock);

  // device_tensor_cuda.cu: what takes part of several ranks.
  bool is_shared() const { return shape_.tp.size > 1; }
  bool sums_apart() const { return is_shared() && shape_.sums == SumType::kF32; }
  void check_ranks() const;
  void linear_over_ranks(const LayerCall& call, const LinearShape& shape, const std::byte* x,
                         const std::byte* weight, const Rows& rows);
  void sum_over_ranks(const LayerCall& call, void* values, std::int64_t count, DType dtype);
  void best_over_ranks(const LayerCall& call, std::int64_t count);
  const std::byte* queries_of_groups(const LayerCall& call, int count);
  void wait_for_stream(std::string_view operation);
  void gather_vocabulary(std::int64_t count, std::vector<float>& logits) const;

  // device_prefill_cuda.cu
  struct Prompt;
  void extend_prompt(const Prompt& prompt, int layer);
  void project_chunk(const Prompt& prompt, int layer, std::int64_t first, std::int64_t count);
  void attend_prompt(Prompt& prompt, int layer, std::int64_t first);
  void attend_densely(const Prompt& prompt, int layer, std::int64_t first, std::byte* out, float* lse);
  void add_pairs(std::uint64_t visible, std::uint64_t executed);
  void trim_cache(Prompt& prompt, int layer);
  HeadLists choose_kept(const Prompt& prompt, int layer);
  void compute_prompt_logits(const Prompt& prompt, std::span<const std::int64_t> wanted,
                             std::vector<float>& logits);

  // device_select_cuda.cu
  struct LineSums;
  struct LineRoom;
  int prompt_lists() const {  // of columns and diagonals
    return static_cast<int>(plan_.share_group ? config_.kv_heads : config_.heads);
  }
  void make_pair_sums();
  void prepare_selection(Prompt& prompt);
  void attend_lists(const Prompt& prompt, int layer, std::int64_t first, const PrefillLists& lists);
  void attend_chosen_blocks(Prompt& prompt, int layer, std::int64_t first);
  void count_chosen_pairs(const BlockSelectProblem& problem, std::int64_t first_executed);
  void attend_window(Prompt& prompt, int layer, std::int64_t first);
  void attend_chosen_lines(Prompt& prompt, int layer, std::int64_t first);
  LineSums sum_window(const Prompt& prompt, int layer, const WindowSumsProblem& problem);
  SlashSelectParams choose_lines(const SlashSelectProblem& problem, const LineSums& sums,
                                 const LineRoom& room);
  static PrefillLists lists_of(const SlashSelectParams& select);
  void count_line_pairs(const SlashSelectParams& select, std::int64_t first_executed, std::uint64_t* counts);
  void fetch_pairs(const Prompt& prompt);
  void read_pairs();

  // device_keep_cuda.cu
  bool keeps_on_device() const;
  HeadLists keep_on_device(const Prompt& prompt, int layer);

  // device_diagnose_cuda.cu
  struct Compared {
    const void* out = nullptr;   // (T, H, D)
    const float* lse = nullptr;  // (T, H)
  };
  struct InspectedRow {
    int sequence = 0;
    int layer = 0;
    std::int32_t position = 0;
    const std::byte* q = nullptr;  // (H, D)
  };
  enum class Seen : std::uint8_t { kTokens, kPages };
  void add_comparison(const Compared& selected, const Compared& dense, std::int64_t rows, Phase phase,
                      int layer, DiagnosisSums& sums);
  void diagnose_prompt(const Prompt& prompt, int layer);
  void diagnose_kept(const Prompt& prompt, int layer, const HeadLists& kept);
  void diagnose_row(const InspectedRow& row, const HeadLists& seen, Seen unit, DiagnosisSums& sums);

  // device_inspect_cuda.cu
  bool listens_to_prefill() const {
    return selection_listener_ != nullptr && selection_listener_->wants_prefill();
  }
  bool listens_to_decode() const {
    return selection_listener_ != nullptr && selection_listener_->wants_decode();
  }
  void download_blocks(Prompt& prompt, const PrefillLists& lists);
  void download_lines(Prompt& prompt, const SlashSelectParams& select);
  void spread_window(Prompt& prompt);
  void tell_listener(Prompt& prompt, int layer, const HeadLists* kept);
  HeadLists download_pages(int row);
  void inspect_step(int layer);
  std::vector<float> widen_on_host(const std::byte* values, std::int64_t count);

  // device_decode_cuda.cu
  void hold_rows(std::span<const DecodeRow> rows);
  void run_step(int count);
  std::size_t clock_marks_of_step() const;
  void enqueue_step(int count, DeviceClock* clock);
  DecodeProblem problem_of(int count, int lists) const;
  DecodeReach reach_of(const PlanGroup& group, int layer) const;
  void plan_group(PlanGroup& group, int count);
  static bool is_settled(int layer);
  void select_pages(int layer, int count, DeviceClock* clock);
  void attend_step(int layer, int count);
  void count_step(std::span<const DecodeRow> rows);
  const PlanGroup& group_of(int layer) const {
    return plan_groups_[static_cast<std::size_t>(group_of_layer_[static_cast<std::size_t>(layer)])];
  }
  std::int64_t budget_pages() const { return plan_.decode.whole("tokens") / kPageTokens; }

  ModelConfig config_;  // of this rank
  const DeviceWeights& weights_;
  DeviceModelShape shape_;
  int kv_replicas_ = 1;  // neighbours that hold the same KV head, and together the query heads of its group
  int exceptions_at_start_;
  AttentionPlan plan_;
  LayerPlans layers_;
  MemoryMeter& meter_;
  DType dtype_;
  int multiprocessors_ = 0;
  CudaStream stream_;
  StreamPool pool_;
  DeviceGemm gemm_;
  std::unique_ptr<DeviceKvCache> cache_;
  Ropes rope_;
  Ropes local_rope_;               // of window layers; empty where the model has none of its own
  DeviceBuffer all_positions_;     // 0 … max_tokens − 1
  DeviceBuffer block_positions_;   // 0, 64, …
  DeviceBuffer prefill_counters_;  // (2)

  // Of methods that choose columns and diagonals: pairs of the last prompt, visible and executed.
  DeviceBuffer pair_sums_;       // (sparse layers, 2, lists) uint64
  PinnedBuffer host_pair_sums_;  // likewise
  std::span<const MethodSettings> ladder_;
  std::vector<PairTotals>* ladder_totals_ = nullptr;
  StreamPool::Block ladder_sums_;  // (steps, 2, lists) uint64

  std::vector<PlanGroup> plan_groups_;
  std::vector<int> group_of_layer_;  // (L)

  // Of a decode step, for `batch` rows.
  DeviceBuffer step_storage_;
  Rows step_;
  DeviceBuffer inputs_;       // (3, batch) int32: tokens, positions, handles
  PinnedBuffer host_inputs_;  // likewise
  CudaEvent inputs_copied_;
  DeviceBuffer logits_;         // (batch, V of this rank) fp32
  DeviceBuffer all_queries_;    // (ranks, batch, H·D), where KV heads have replicas
  DeviceBuffer group_queries_;  // (batch, replicas·H·D), likewise
  DeviceBuffer attend_space_;   // partial results
  DeviceBuffer page_scores_;    // (batch · lists, score_stride)
  DeviceBuffer pages_;          // (batch · lists, page_stride)
  DeviceBuffer page_begin_, page_count_;
  std::int64_t score_stride_ = 0;
  std::int64_t page_stride_ = 0;
  std::map<int, Step> steps_;  // by N
  CudaEvent step_began_, step_ended_;

  // Of the last call that computed logits.
  DeviceBuffer argmax_keys_, argmax_indices_, argmax_values_;                        // (most rows)
  static constexpr std::size_t kResultBytes = sizeof(std::int32_t) + sizeof(float);  // a row
  PinnedBuffer results_;  // indices (rows), then values (rows)
  std::int64_t result_rows_ = 0;
  enum class Pending { kNothing, kPrefill, kDirectStep, kTimedStep, kPlainStep } pending_ = Pending::kNothing;
  int pending_count_ = 0;  // N of the step

  DeviceClock clock_;  // of work that is launched directly
  OpTimes times_;
  ExchangeCounts exchange_;
  AttentionCounts attention_;
  StepListener listener_;
  SelectionListener* selection_listener_ = nullptr;
  std::span<const DecodeRow> inspected_;  // of the step at hand, where somebody looks into it
  bool want_logits_ = false;
};

}  // namespace tessera::cuda
