// A decode step of random data for the benches: several sets of keys and values (with their own queries and
// bounds) that steps go round, so that L2 holds nothing of use when a set comes round again.
#pragma once

#include <functional>
#include <vector>

#include "attention/decode_cuda.hpp"
#include "attention/page_select_cuda.hpp"
#include "jobs/bench_gpu/gpu_timer.hpp"
#include "jobs/bench_shape.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {

class DecodeProblemData {
 public:
  // warps, stages: of attention; 0 chooses.
  DecodeProblemData(const BenchShape& shape, int warps, int stages, GpuTimer& gpu);

  double kv_bytes() const { return static_cast<double>(slots_) * static_cast<double>(slot_bytes_); }
  // Pages that `kept` of the length leaves beside the current one, and what a step then reads.
  int budget_pages(double kept) const;
  double bounds_bytes() const { return kv_bytes() / kPageTokens; }
  double kept_bytes(double kept) const { return kv_bytes() * kept; }

  // The plan is made once before, or in every step.
  enum class Plan { kBefore, kInStep };
  GpuTimes dense(Plan plan, int repeats);
  // Rows of each head: `kept` of the length on average, between half and one and a half of that.
  GpuTimes packed(double kept, Plan plan, int repeats);

  struct QuestParts {
    bool score = false;
    bool select = false;
    bool plan = false;
    bool attend = false;
  };
  GpuTimes quest(double kept, const QuestParts& parts, int repeats);

 private:
  int steps() const;
  void fill_bounds(int set);
  void plan(const DecodeReach& reach);
  void attend(const DecodeReach& reach, int set, bool settled);
  PageSelectProblem select_problem() const;
  void score(int set);
  void select(int budget);
  GpuTimes time_attention(const DecodeReach& reach, Plan when, int repeats);

  GpuTimer& gpu_;
  BenchShape shape_;
  int sets_ = 1;
  DecodeProblem problem_;
  DecodeConfig config_;
  std::int64_t slots_ = 0;
  std::size_t slot_bytes_ = 0;
  std::int64_t blocks_ = 0;        // of a sequence
  std::int64_t score_stride_ = 0;  // pages of a sequence
  DeviceBuffer table_, tables_, positions_, out_, lse_, scores_, chosen_, begin_, count_, plan_, workspace_;
  std::vector<DeviceBuffer> pool_, bounds_, q_;  // one a set
};

}  // namespace tessera::cuda
