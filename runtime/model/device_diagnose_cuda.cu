// A selection beside dense attention of the same queries (--diagnose), on the device: every row of a layer of
// a prompt, its last row over what the cache keeps, the first step over its pages. Waits for the device,
// layer by layer; not in the times of a sample.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "attention/prefill_cuda.hpp"
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

// Adds what `rows` rows of a layer differ from dense attention.
void DeviceModel::add_comparison(const Compared& selected, const Compared& dense, std::int64_t rows,
                                 Phase phase, int layer, DiagnosisSums& sums) {
  const auto heads = static_cast<int>(config_.heads);
  const std::int64_t chunks = ceil_div(rows, kChunkRows);
  const StreamPool::Block parts = pool_.take_array<double>(chunks * heads * kParts);
  CompareArguments p{};
  p.out = selected.out;
  p.dense_out = dense.out;
  p.lse = selected.lse;
  p.dense_lse = dense.lse;
  p.parts = parts.as<double>();
  p.rows = rows;
  p.heads = heads;
  p.head_dim = static_cast<int>(config_.head_dim);
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(chunks), static_cast<unsigned>(heads)),
                             .block = kThreads};
  if (dtype_ == DType::kBF16) {
    launch(compare_kernel<__nv_bfloat16>, shape, stream_, p);
  } else {
    launch(compare_kernel<__half>, shape, stream_, p);
  }
  std::vector<double> of_chunks(static_cast<std::size_t>(chunks * heads * kParts));
  copy_to_host(of_chunks.data(), parts.data(), parts.bytes(), stream_);
  stream_.synchronize();
  const DiagnosisShape of_model{static_cast<int>(config_.layers), heads, p.head_dim};
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const double here = static_cast<double>(std::min<std::int64_t>(kChunkRows, rows - chunk * kChunkRows));
    for (int head = 0; head < heads; ++head) {
      const double* part = of_chunks.data() + (chunk * heads + head) * kParts;
      add_diagnosis_sums(sums, of_model, phase, layer, head, {part[0], part[1], part[2], here});
    }
  }
}

// The layer's rows again, over all keys.
void DeviceModel::diagnose_prompt(const Prompt& prompt, int layer) {
  clock_.pause();
  const std::int64_t tokens = prompt.tokens();
  const StreamPool::Block out = pool_.take(bytes_of(tokens * q_width())),
                          lse = pool_.take_array<float>(tokens * config_.heads);
  attend_densely(prompt, layer, 0, out.data(), lse.as<float>());
  add_comparison({prompt.rows.attended, prompt.lse.as<float>()}, {out.data(), lse.as<float>()}, tokens,
                 Phase::kPrefill, layer, *prompt.diagnosis);
}

// The last row of the prompt over what its cache will keep of the layer, which still holds everything.
void DeviceModel::diagnose_kept(const Prompt& prompt, int layer, const HeadLists& kept) {
  const std::int64_t last = prompt.tokens() - 1;
  diagnose_row({prompt.sequence, layer, static_cast<std::int32_t>(last),
                prompt.rows.queries + bytes_of(last * q_width())},
               kept, Seen::kTokens, *prompt.diagnosis);
}

// One row by the kernels of prompts: over all keys up to its own, and over those of its lists.
void DeviceModel::diagnose_row(const InspectedRow& row, const HeadLists& seen, Seen unit,
                               DiagnosisSums& sums) {
  clock_.pause();
  const auto upload = [&](const auto& values) {  // from memory that is not pinned: copied before it returns
    StreamPool::Block block = pool_.take(values.size() * sizeof(values[0]));
    copy_to_device(block.data(), values.data(), block.bytes(), stream_);
    return block;
  };
  const std::int64_t length = std::int64_t{row.position} + 1;
  const StreamPool::Block out = pool_.take(bytes_of(q_width())), dense_out = pool_.take(bytes_of(q_width())),
                          lse = pool_.take_array<float>(config_.heads),
                          dense_lse = pool_.take_array<float>(config_.heads),
                          position = upload(std::vector<std::int32_t>{row.position});
  PrefillParams dense;
  dense.tokens = 1;
  dense.heads = static_cast<int>(config_.heads);
  dense.q = row.q;
  dense.q_row_stride = q_width();
  dense.block_positions = position.as<const std::int32_t>();
  dense.kv = cache_->view(row.sequence, row.layer, length);
  dense.pool_slots = cache_->capacity();
  dense.scale = config_.attention_scale;
  dense.out = dense_out.data();
  dense.lse = dense_lse.as<float>();
  dense.counters = prefill_counters_.as<std::uint32_t>();
  dense.stream = stream_;
  prefill_attention(dense);

  PrefillLists lists;
  lists.heads = seen.heads;
  lists.query_blocks = ceil_div(length, kQueryBlockRows);
  // Of all query blocks the last has a list.
  std::vector<std::int64_t> row_begin(static_cast<std::size_t>(seen.heads * lists.query_blocks + 1), 0);
  std::vector<BlockEntry> entries;
  std::vector<std::int32_t> columns, counts;
  for (int head = 0; head < seen.heads; ++head) {
    const std::span<const std::int32_t> list = seen.of(head);
    if (unit == Seen::kTokens) {
      counts.push_back(static_cast<std::int32_t>(list.size()));
      lists.column_stride = std::max(lists.column_stride, static_cast<std::int64_t>(list.size()));
      continue;
    }
    const std::size_t first = entries.size();
    constexpr int kPages = kBlockTokens / kPageTokens;
    for (const std::int32_t page : list) {
      if (entries.size() == first || entries.back().block() != page / kPages)
        entries.push_back(BlockEntry::make(page / kPages, 0));
      entries.back().bits |= 1U << (page % kPages);
    }
    const std::size_t place = static_cast<std::size_t>((head + 1) * lists.query_blocks);
    std::fill(row_begin.begin() + static_cast<std::ptrdiff_t>(place), row_begin.end(),
              static_cast<std::int64_t>(entries.size()));
  }
  if (unit == Seen::kTokens) {
    columns.assign(static_cast<std::size_t>(seen.heads * lists.column_stride), 0);
    for (int head = 0; head < seen.heads; ++head) {
      const std::span<const std::int32_t> list = seen.of(head);
      std::copy(list.begin(), list.end(), columns.begin() + head * lists.column_stride);
    }
  }
  const StreamPool::Block begin_block = upload(row_begin), entry_block = upload(entries),
                          column_block = upload(columns), count_block = upload(counts),
                          row_block = upload(std::vector<QueryRows>{{0, row.position, 1}});
  lists.row_begin = begin_block.as<const std::int64_t>();
  lists.entries = entry_block.as<const BlockEntry>();
  lists.columns = column_block.as<const std::int32_t>();
  lists.column_counts = count_block.as<const std::int32_t>();
  SparsePrefillParams p;
  p.tokens = 1;
  p.heads = dense.heads;
  p.q = row.q;
  p.q_row_stride = q_width();
  p.rows = row_block.as<const QueryRows>();
  p.row_blocks = 1;
  p.lists = lists;
  p.kv = dense.kv;
  p.pool_slots = dense.pool_slots;
  p.scale = dense.scale;
  p.out = out.data();
  p.lse = lse.as<float>();
  const StreamPool::Block workspace = pool_.take(sparse_prefill_workspace(p.heads, 1, lists.heads, length));
  p.workspace = workspace.data();
  p.counters = dense.counters;
  p.stream = stream_;
  sparse_prefill_attention(p);
  add_comparison({out.data(), lse.as<float>()}, {dense_out.data(), dense_lse.as<float>()}, 1, Phase::kDecode,
                 row.layer, sums);
}

}  // namespace tessera::cuda
