// Selections on their way to a file (--dump-selections): lists, queries and keys of a layer come to the host,
// which waits for them. None of it is in the times of a sample.
#include <algorithm>
#include <bit>

#include "attention/selection_builder.hpp"
#include "runtime/core/device_ops.hpp"
#include "runtime/core/error.hpp"
#include "runtime/model/device_prompt.hpp"

namespace tessera::cuda {
namespace {

template <typename T>
std::vector<T> fetch(const T* values, std::int64_t count, StreamView stream) {
  std::vector<T> fetched(static_cast<std::size_t>(count));
  copy_to_host(fetched.data(), values, fetched.size() * sizeof(T), stream);
  synchronize(stream);
  return fetched;
}

}  // namespace

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
  if (!listens_to_prefill() || (!selects && kept == nullptr)) return;
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

// Blocks of the method's edge from their lists; those of 128 tokens have two entries each, or one at the end,
// those of 16 and 32 one that names some pages.
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
        const BlockEntry& entry = entries[static_cast<std::size_t>(at)];
        const std::int64_t first_token =
            entry.block() * kBlockTokens + std::countr_zero(entry.pages()) * kPageTokens;
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

// Pages that row i of the step at hand reads: K lists, or H.
HeadLists DeviceModel::download_pages(int row) {
  const bool by_query_head = plan_.decode.whole("per_query_head") != 0;
  HeadLists lists;
  lists.heads = static_cast<int>(by_query_head ? config_.heads : config_.kv_heads);
  const std::int64_t first = std::int64_t{row} * lists.heads;
  const std::vector<std::int32_t> counts =
      fetch(page_count_.as<const std::int32_t>() + first, lists.heads, stream_);
  const std::vector<std::int32_t> pages =
      fetch(pages_.as<const std::int32_t>() + first * page_stride_, lists.heads * page_stride_, stream_);
  lists.begin.push_back(0);
  for (std::int64_t i = 0; i < lists.heads; ++i) {
    const auto begin = pages.begin() + i * page_stride_;
    lists.values.insert(lists.values.end(), begin, begin + counts[static_cast<std::size_t>(i)]);
    lists.begin.push_back(static_cast<std::int64_t>(lists.values.size()));
  }
  return lists;
}

// A layer of a step that was launched kernel by kernel, after its attention.
void DeviceModel::inspect_step(int layer) {
  clock_.pause();
  for (std::size_t i = 0; i < inspected_.size(); ++i) {
    const DecodeRow& row = inspected_[i];
    const bool is_told = i == 0 && listens_to_decode();
    if (!is_told && row.diagnosis == nullptr) continue;
    const HeadLists pages = download_pages(static_cast<int>(i));
    const std::byte* query = step_.queries + bytes_of(static_cast<std::int64_t>(i) * q_width());
    if (row.diagnosis != nullptr) {
      diagnose_row({row.sequence, layer, row.position, query}, pages, Seen::kPages, *row.diagnosis);
    }
    if (!is_told) continue;
    const std::vector<float> q = widen_on_host(query, q_width());
    selection_listener_->decode_layer({layer, row.position, q.data(), &pages});
  }
}

}  // namespace tessera::cuda
