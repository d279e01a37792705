// One function for each way of choosing in prefill; select_prefill picks by the method's row. Private to the
// room.
#pragma once

#include "attention/select.hpp"

namespace tessera {

// Lists of a selection: K when the group shares, else H. List i stands for query heads i · size … + size − 1,
// which read KV head first / (H / K).
struct HeadGroups {
  int lists = 0;
  int size = 1;

  explicit HeadGroups(const SelectInput& input)
      : lists(input.share_group ? input.kv_heads : input.heads), size(input.heads / lists) {}
};

PrefillChoice select_streaming(const SelectInput& input, const MethodSettings& settings);
PrefillChoice select_columns_and_diagonals(const SelectInput& input, const MethodSettings& settings);
PrefillChoice select_pooled_blocks(const SelectInput& input, const MethodSettings& settings);
PrefillChoice select_antidiagonal_blocks(const SelectInput& input, const MethodSettings& settings);

}  // namespace tessera
