// One function a bench; each adds rows to the report and shows them as they come.
#pragma once

#include <functional>

#include "jobs/bench_gpu/gpu_timer.hpp"
#include "jobs/bench_table.hpp"
#include "jobs/options.hpp"

namespace tessera::cuda {

using ShowRow = std::function<void(BenchRow)>;  // adds it to the report

// Dense causal prefill by every path of --path in turns.
void bench_prefill(const BenchOptions& options, GpuTimer& gpu, const ShowRow& show);
// Sparse prefill methods at --sparsities beside dense: choice, attention, both.
void bench_sparse_prefill(const BenchOptions& options, GpuTimer& gpu, const ShowRow& show);
// A decode step: dense, quest and heads that eviction packed, at --sparsity.
void bench_decode(const BenchOptions& options, GpuTimer& gpu, const ShowRow& show);
// The parts of a quest step: scores of pages, choice, attention to the chosen.
void bench_page_select(const BenchOptions& options, GpuTimer& gpu, const ShowRow& show);
// Linear layers of a model's shapes, or of Qwen2.5's 7B and 72B.
void bench_linear(const BenchOptions& options, GpuTimer& gpu, const ShowRow& show);
// Weights from a checkpoint to the device: the whole of it, and the part that streams.
void bench_load_weights(const BenchOptions& options, GpuTimer& gpu, const ShowRow& show);
// Prefill and decode steps of a whole model; returns seconds by operation and the memory in use.
nlohmann::json bench_model(const BenchOptions& options, const BenchLimits& limits, GpuTimer& gpu,
                           const ShowRow& show);

}  // namespace tessera::cuda
