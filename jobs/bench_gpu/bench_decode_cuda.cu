#include <fmt/format.h>

#include "jobs/bench_gpu/decode_problem.hpp"
#include "jobs/bench_gpu/gpu_benches.hpp"

namespace tessera::cuda {
namespace {

using Plan = DecodeProblemData::Plan;

// Rows of one shape, all beside its dense attention.
class DecodeRows {
 public:
  DecodeRows(const BenchOptions& options, const BenchShape& shape, GpuTimer& gpu, const ShowRow& show)
      : data(shape, options.warps, options.stages, gpu),
        repeats_(options.repeats),
        shape_(shape),
        kept_(1 - options.sparsity),
        sparsity_(fmt::format("{:.4g}", options.sparsity)),
        show_(show) {}

  void dense(Plan plan) {
    const GpuTimes times = data.dense(plan, repeats_);
    if (plan == Plan::kBefore) dense_seconds_ = median_of(times.seconds);
    BenchRow row = row_of(plan == Plan::kBefore ? "dense" : "dense, with plan", times, data.kv_bytes());
    row.flops = 4.0 * static_cast<double>(shape_.length) * shape_.head_dim * shape_.heads * shape_.sequences;
    show_(std::move(row));
  }
  void packed(Plan plan) {
    const GpuTimes times = data.packed(kept_, plan, repeats_);
    const char* note = plan == Plan::kBefore ? "" : ", with plan";
    show_(row_of(fmt::format("evicted {}{}", sparsity_, note), times, data.kept_bytes(kept_)));
  }
  void quest(const char* what, const DecodeProblemData::QuestParts& parts) {
    const GpuTimes times = data.quest(kept_, parts, repeats_);
    const double bytes =
        (parts.score ? data.bounds_bytes() : 0) + (parts.attend ? data.kept_bytes(kept_) : 0);
    show_(row_of(fmt::format("quest {}{}", sparsity_, what), times, bytes));
  }

  DecodeProblemData data;

 private:
  BenchRow row_of(std::string work, const GpuTimes& times, double bytes) const {
    BenchRow row;
    row.work = std::move(work);
    row.shape = name_of(shape_);
    row.seconds = times.seconds;
    row.sm_clock_mhz = times.sm_clock_mhz;
    row.bytes = bytes;
    row.limit = bytes > 0 ? BenchLimit::kRead : BenchLimit::kNone;
    row.dense_seconds = dense_seconds_;
    return row;
  }

  int repeats_;
  BenchShape shape_;
  double kept_;
  std::string sparsity_;
  const ShowRow& show_;
  double dense_seconds_ = 0;
};

}  // namespace

void bench_decode(const BenchOptions& options, GpuTimer& gpu, const ShowRow& show) {
  for (const BenchShape& shape : options.shapes) {
    DecodeRows rows(options, shape, gpu, show);
    rows.dense(Plan::kBefore);
    rows.dense(Plan::kInStep);
    rows.quest("", {.score = true, .select = true, .attend = true});
    rows.quest(", with plan", {.score = true, .select = true, .plan = true, .attend = true});
    rows.packed(Plan::kBefore);
    rows.packed(Plan::kInStep);
  }
}

void bench_page_select(const BenchOptions& options, GpuTimer& gpu, const ShowRow& show) {
  for (const BenchShape& shape : options.shapes) {
    DecodeRows rows(options, shape, gpu, show);
    rows.dense(Plan::kBefore);
    rows.quest(": score", {.score = true});
    rows.quest(": select", {.select = true});
    rows.quest(": score + select", {.score = true, .select = true});
    rows.quest(": plan", {.plan = true});
    rows.quest(": attend", {.attend = true});
    rows.quest(": whole step", {.score = true, .select = true, .attend = true});
  }
}

}  // namespace tessera::cuda
