// What researchers look into: a selection beside dense attention of the same queries (--diagnose), and
// selections on their way to a file (--dump-selections). Both wait for the device, layer by layer; neither is
// in the times of a sample.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "attention/selection_builder.hpp"
#include "runtime/core/cuda_element.cuh"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/device_ops.hpp"
#include "runtime/core/error.hpp"
#include "runtime/model/device_prompt.hpp"
#include "runtime/model/diagnosis.hpp"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kChunkRows = 256;
constexpr int kParts = 3;  // kept mass, error, norm

struct CompareArguments {
  const void* out;         // (T, H, D)
  const void* dense_out;   // (T, H, D)
  const float* lse;        // (T, H)
  const float* dense_lse;  // (T, H)
  double* parts;           // (chunks, H, kParts)
  std::int64_t rows;       // T
  int heads;
  int head_dim;
};

// Grid (chunks, H): a warp takes every eighth row of a chunk. Sums go in one order.
template <typename T>
__global__ void __launch_bounds__(kThreads) compare_kernel(const CompareArguments p) {
  __shared__ double sums[kWarps][kParts];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int head = static_cast<int>(blockIdx.y);
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kChunkRows;
  const std::int64_t end = min(begin + kChunkRows, p.rows);
  const T* const out = static_cast<const T*>(p.out);
  const T* const dense_out = static_cast<const T*>(p.dense_out);
  double mass = 0;
  double error = 0;
  double norm = 0;
  for (std::int64_t row = begin + warp; row < end; row += kWarps) {
    const std::int64_t at = row * p.heads + head;
    if (lane == 0) mass += exp(static_cast<double>(p.lse[at]) - static_cast<double>(p.dense_lse[at]));
    for (int d = lane; d < p.head_dim; d += 32) {
      const double x = static_cast<double>(static_cast<float>(out[at * p.head_dim + d]));
      const double y = static_cast<double>(static_cast<float>(dense_out[at * p.head_dim + d]));
      error += (x - y) * (x - y);
      norm += y * y;
    }
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    mass += __shfl_xor_sync(~0U, mass, distance);
    error += __shfl_xor_sync(~0U, error, distance);
    norm += __shfl_xor_sync(~0U, norm, distance);
  }
  if (lane == 0) {
    sums[warp][0] = mass;
    sums[warp][1] = error;
    sums[warp][2] = norm;
  }
  __syncthreads();
  const int part = static_cast<int>(threadIdx.x);
  if (part >= kParts) return;
  double sum = 0;
  for (int i = 0; i < kWarps; ++i) sum += sums[i][part];
  p.parts[(static_cast<std::int64_t>(blockIdx.x) * p.heads + head) * kParts + part] = sum;
}

}  // namespace

void DeviceModel::refuse_diagnosis() const {
  throw UsageError(
      "--diagnose with --device cuda --decode {}: the CUDA backend compares prefill with dense attention, "
      "not "
      "decoding; use --device cpu",
      plan_.decode.method().name);
}

// The layer's rows again, over all keys.
void DeviceModel::diagnose_prompt(Prompt& prompt, int layer) {
  clock_.pause();
  const std::int64_t tokens = prompt.tokens();
  const int heads = static_cast<int>(config_.heads);
  const std::int64_t chunks = ceil_div(tokens, kChunkRows);
  const StreamPool::Block out = pool_.take(bytes_of(tokens * q_width())),
                          lse = pool_.take_array<float>(tokens * heads),
                          parts = pool_.take_array<double>(chunks * heads * kParts);
  attend_densely(prompt, layer, 0, out.data(), lse.as<float>());
  CompareArguments p{};
  p.out = prompt.rows.attended;
  p.dense_out = out.data();
  p.lse = prompt.lse.as<float>();
  p.dense_lse = lse.as<float>();
  p.parts = parts.as<double>();
  p.rows = tokens;
  p.heads = heads;
  p.head_dim = static_cast<int>(config_.head_dim);
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(chunks), static_cast<unsigned>(heads)),
                             .block = kThreads};
  if (dtype_ == DType::kBF16) {
    launch(compare_kernel<__nv_bfloat16>, shape, stream_, p);
  } else {
    launch(compare_kernel<__half>, shape, stream_, p);
  }
  std::vector<double> sums(static_cast<std::size_t>(chunks * heads * kParts));
  copy_to_host(sums.data(), parts.data(), parts.bytes(), stream_);
  stream_.synchronize();
  DiagnosisSums& into = *prompt.diagnosis;
  const DiagnosisShape of_model{static_cast<int>(config_.layers), heads, p.head_dim};
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const double rows = static_cast<double>(std::min<std::int64_t>(kChunkRows, tokens - chunk * kChunkRows));
    for (int head = 0; head < heads; ++head) {
      const double* part = sums.data() + (chunk * heads + head) * kParts;
      add_diagnosis_sums(into, of_model, Phase::kPrefill, layer, head, {part[0], part[1], part[2], rows});
    }
  }
}

// ---- dumps ------------------------------------------------------------------------------------------------

// As fp32, by pieces of a workspace that does not grow with them.
std::vector<float> DeviceModel::widen_on_host(const std::byte* values, std::int64_t count) {
  constexpr std::int64_t kPiece = std::int64_t{1} << 22;
  std::vector<float> wide(static_cast<std::size_t>(count));
  const StreamPool::Block piece = pool_.take_array<float>(std::min(kPiece, count));
  for (std::int64_t first = 0; first < count; first += kPiece) {
    const std::int64_t here = std::min(kPiece, count - first);
    convert(values + bytes_of(first), dtype_, piece.data(), DType::kF32, here, stream_);
    copy_to_host(wide.data() + first, piece.data(), static_cast<std::size_t>(here) * sizeof(float), stream_);
  }
  stream_.synchronize();
  return wide;
}

void DeviceModel::tell_listener(Prompt& prompt, int layer, const HeadLists* kept) {
  const bool selects = layers_.sparse_prefill(layer);
  if (selection_listener_ == nullptr || (!selects && kept == nullptr)) return;
  clock_.pause();
  const std::int64_t tokens = prompt.tokens();
  const StreamPool::Block keys = pool_.take(bytes_of(tokens * kv_width()));
  cache_->gather_keys(prompt.sequence, layer, tokens, keys.data());
  const std::vector<float> q = widen_on_host(prompt.rows.queries, tokens * q_width());
  const std::vector<float> k = widen_on_host(keys.data(), tokens * kv_width());
  selection_listener_->prefill_layer({layer, &prompt.partition, prompt.positions, q.data(), k.data(),
                                      selects ? &prompt.choice : nullptr, kept});
  prompt.choice = {};
}

namespace {

template <typename T>
std::vector<T> fetch(const T* values, std::int64_t count, StreamView stream) {
  std::vector<T> fetched(static_cast<std::size_t>(count));
  copy_to_host(fetched.data(), values, fetched.size() * sizeof(T), stream);
  synchronize(stream);
  return fetched;
}

}  // namespace

// Blocks of the method's edge from their lists; those of 128 tokens have two entries each, or one at the end.
void DeviceModel::download_blocks(Prompt& prompt, const PrefillLists& lists) {
  clock_.pause();
  const std::int64_t edge = lists.rows_per_block;
  const std::vector<std::int64_t> begin =
      fetch(lists.row_begin, lists.heads * lists.query_blocks + 1, stream_);
  const std::vector<BlockEntry> entries = fetch(lists.entries, begin.back(), stream_);
  auto& blocks = prompt.choice.native.blocks;
  blocks.assign(static_cast<std::size_t>(lists.heads), {});
  std::size_t row = 0;
  for (auto& of_head : blocks) {
    for (std::int64_t i = 0; i < lists.query_blocks; ++i, ++row) {
      std::vector<std::int32_t>& list = of_head.emplace_back();
      for (std::int64_t at = begin[row]; at < begin[row + 1]; ++at) {
        const std::int64_t first_token = entries[static_cast<std::size_t>(at)].block() * kBlockTokens;
        const auto block = static_cast<std::int32_t>(first_token / edge);
        if (list.empty() || list.back() != block) list.push_back(block);
      }
    }
  }
  prompt.choice.selection = select_blocks(prompt.tokens(), plan_.share_group, edge, blocks);
}

void DeviceModel::download_lines(Prompt& prompt, const SlashSelectParams& select) {
  clock_.pause();
  const SlashSelectProblem& problem = select.problem;
  const std::vector<std::int32_t> counts = fetch(select.counts, 2 * problem.lists, stream_);
  const auto cut = [&](const std::int32_t* of_device, std::int64_t stride, int kind) {
    const std::vector<std::int32_t> all = fetch(of_device, problem.lists * stride, stream_);
    std::vector<std::vector<std::int32_t>> lists;
    for (std::int64_t list = 0; list < problem.lists; ++list) {
      const auto first = all.begin() + list * stride;
      lists.emplace_back(first, first + counts[static_cast<std::size_t>(kind * problem.lists + list)]);
    }
    return lists;
  };
  PrefillChoice& choice = prompt.choice;
  choice.native.columns = cut(select.columns, problem.kept_columns(), 0);
  choice.native.diagonals = cut(select.diagonals, problem.kept_diagonals(), 1);
  PrefillSelection& s = choice.selection;
  s = {};
  s.length = problem.tokens;
  s.heads = problem.lists;
  s.shared_by_group = plan_.share_group;
  s.row_begin = fetch(select.row_begin, problem.lists * problem.query_blocks() + 1, stream_);
  s.entries = fetch(select.entries, s.row_begin.back(), stream_);
  s.column_begin = {0};
  for (const auto& columns : choice.native.columns) {
    s.columns.insert(s.columns.end(), columns.begin(), columns.end());
    s.column_begin.push_back(static_cast<std::int64_t>(s.columns.size()));
  }
}

// What streaming shows every head, as a selection has it: a list for each.
void DeviceModel::spread_window(Prompt& prompt) {
  const auto lists = static_cast<std::size_t>(prompt_lists());
  const auto first = [&](std::string_view name) {
    std::vector<std::int32_t> list(
        static_cast<std::size_t>(std::min(plan_.prefill.whole(name), prompt.tokens())));
    for (std::size_t i = 0; i < list.size(); ++i) list[i] = static_cast<std::int32_t>(i);
    return list;
  };
  NativeDecision& native = prompt.choice.native;
  native.columns.assign(lists, first("sinks"));
  native.diagonals.assign(lists, first("window"));
  prompt.choice.selection =
      select_diagonals(prompt.tokens(), plan_.share_group, native.columns, native.diagonals);
}

}  // namespace tessera::cuda
