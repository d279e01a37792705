// Choice of the snapkv family on the GPU (attention/kept_select_cuda.hpp): a thread pools for a token, a
// cluster chooses for a list. Tokens that are kept whatever they score are given a sum above all others.
#include "attention/kept_select_cuda.hpp"

#include "attention/line_select.cuh"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/tensor.hpp"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 256;
constexpr Fixed kAboveAll = Fixed{1} << 62;

struct PoolArguments {
  const Fixed* importance;
  Fixed* pooled;
  int tokens;
  int sinks;
  int recent;
  int half;  // neighbours on either side
};

// Grid (tokens / threads, lists).
__global__ void __launch_bounds__(kThreads) pool_kernel(const PoolArguments p) {
  const int token = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (token >= p.tokens) return;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * p.tokens;
  const bool forced = token < p.sinks || token >= p.tokens - p.recent;
  Fixed sum = forced ? kAboveAll : 0;
  const int end = forced ? token : min(p.tokens, token + p.half + 1);
  for (int i = forced ? token : max(0, token - p.half); i < end; ++i) sum += p.importance[first + i];
  p.pooled[first + token] = sum;
}

struct ChoiceArguments {
  const Fixed* pooled;   // (lists, units)
  std::int32_t* chosen;  // (lists, keep)
  std::int32_t* counts;  // (lists)
  int units;
  int keep;
};

// Grid (CTAs of a cluster, lists).
__global__ void __launch_bounds__(kLineThreads, 1) choice_kernel(const ChoiceArguments p) {
  __shared__ LineShared shared;
  const std::int64_t list = blockIdx.y;
  LineList line;
  line.sums = p.pooled + list * p.units;
  line.chosen = p.chosen + list * p.keep;
  line.units = p.units;
  line.forced = 0;
  line.keep = p.keep;
  line.coverage = -1;
  line.count = p.counts + list;
  choose_lines<false>(line, shared);
}

// Grid (keep / threads, lists): those chosen are out of the competition.
__global__ void __launch_bounds__(kThreads) settle_kernel(const ChoiceArguments p, Fixed* pooled) {
  const int index = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (index >= p.keep) return;
  const std::int64_t list = blockIdx.y;
  pooled[list * p.units + p.chosen[list * p.keep + index]] = kAboveAll;
}

void choose(const ChoiceArguments& a, int lists, StreamView stream) {
  LaunchShape shape;
  shape.grid = dim3(kLineCtas, static_cast<unsigned>(lists));
  shape.block = kLineThreads;
  shape.cluster = kLineCtas;
  launch(choice_kernel, shape, stream, a);
}

std::size_t aligned(std::int64_t bytes) {
  return static_cast<std::size_t>((bytes + 15) / 16 * 16);
}

}  // namespace

std::size_t kept_select_workspace(const KeptSelectProblem& problem) {
  const std::int64_t first = problem.shared_keep > 0 ? problem.lists * problem.keep : 0;
  return aligned(problem.lists * problem.tokens * static_cast<std::int64_t>(sizeof(Fixed))) +
         aligned(4 * problem.lists) + aligned(4 * first);
}

void select_kept_on_device(const KeptSelectParams& p) {
  constexpr std::int64_t kMostTokens = 1 << 22;
  const KeptSelectProblem& problem = p.problem;
  const std::int64_t units = problem.lists * problem.tokens;
  TESSERA_CHECK(problem.tokens >= 0 && problem.tokens <= kMostTokens && problem.lists >= 0);
  TESSERA_CHECK(units < (std::int64_t{1} << 31) && problem.pool % 2 == 1);
  if (units == 0) return;
  TESSERA_CHECK(problem.keep >= problem.forced() && problem.keep <= problem.tokens && problem.kept() > 0);
  const bool shared = problem.shared_keep > 0;
  TESSERA_CHECK(!shared ||
                (problem.shared_keep >= problem.lists * problem.keep && problem.shared_keep <= units));
  const auto lists = static_cast<unsigned>(problem.lists);
  auto* const bytes = static_cast<std::byte*>(p.workspace);
  auto* const pooled = reinterpret_cast<Fixed*>(bytes);
  const std::size_t of_pooled = aligned(units * static_cast<std::int64_t>(sizeof(Fixed)));
  auto* const counts = reinterpret_cast<std::int32_t*>(bytes + of_pooled);
  auto* const first = reinterpret_cast<std::int32_t*>(bytes + of_pooled + aligned(4 * problem.lists));
  PoolArguments pool{};
  pool.importance = p.importance;
  pool.pooled = pooled;
  pool.tokens = static_cast<int>(problem.tokens);
  pool.sinks = static_cast<int>(problem.sinks < problem.tokens ? problem.sinks : problem.tokens);
  pool.recent = static_cast<int>(problem.recent < problem.tokens ? problem.recent : problem.tokens);
  pool.half = static_cast<int>(problem.pool / 2);
  launch(pool_kernel,
         {.grid = dim3(static_cast<unsigned>(ceil_div(problem.tokens, kThreads)), lists), .block = kThreads},
         p.stream, pool);
  ChoiceArguments choice{};
  choice.pooled = pooled;
  choice.chosen = shared ? first : p.chosen;
  choice.counts = counts;
  choice.units = pool.tokens;
  choice.keep = static_cast<int>(problem.keep);
  if (choice.keep > 0) choose(choice, problem.lists, p.stream);
  if (!shared) return;
  launch(settle_kernel,
         {.grid = dim3(static_cast<unsigned>(ceil_div(problem.keep, kThreads)), lists), .block = kThreads},
         p.stream, choice, pooled);
  choice.chosen = p.chosen;
  choice.units = static_cast<int>(units);
  choice.keep = static_cast<int>(problem.shared_keep);
  choose(choice, 1, p.stream);
}

}  // namespace tessera::cuda
