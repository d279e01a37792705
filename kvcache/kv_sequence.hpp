// What the tables keep of one sequence. For the sources of this folder only.
#pragma once

#include <algorithm>

#include "kvcache/block_tables.hpp"

namespace tessera {

struct BlockTables::Sequence {
  struct Guest {
    int kv_head;
    std::int64_t block;
  };
  struct Layer {
    // No block in gap_begin … gap_end − 1 is held: what release_between last emptied.
    std::int64_t gap_begin = 0;
    std::int64_t gap_end = 0;
    std::vector<std::int64_t> rows;  // (K) rows of each head once evicted; empty before

    bool packed() const { return !rows.empty(); }
    void close_gap(std::int64_t block) {  // is held from now on; the larger part of the gap stays
      if (block < gap_begin || block >= gap_end) return;
      if (block - gap_begin < gap_end - block - 1) {
        gap_begin = block + 1;
      } else {
        gap_end = block;
      }
    }
  };

  std::int64_t max_tokens = 0;
  std::int64_t stride = 0;           // columns of a table: ceil(max_tokens / B)
  std::vector<std::int32_t> tables;  // (L, K, stride), local
  std::vector<Layer> layers;
  int guest_layer = -1;                   // the layer that has guests, or −1
  std::vector<std::int32_t> guest_table;  // (K, stride) of guest_layer
  std::vector<Guest> guests;
  std::vector<std::int32_t> joint_table;  // (K, stride) of the last joint_view
  LayerRange changed;                     // first = last: none

  std::int32_t* table(int layer) {
    return tables.data() + static_cast<std::size_t>(layer) * guest_table.size();
  }
  // The blocks of one head.
  std::int32_t* table(int layer, int kv_head) { return table(layer) + kv_head * stride; }
  const std::int32_t* table(int layer) const {
    return tables.data() + static_cast<std::size_t>(layer) * guest_table.size();
  }
  void note_change(int layer) {
    changed = changed.first == changed.last
                  ? LayerRange{layer, layer + 1}
                  : LayerRange{std::min(changed.first, layer), std::max(changed.last, layer + 1)};
  }
  Layer& layer_at(int layer) { return layers[static_cast<std::size_t>(layer)]; }
  const Layer& layer_at(int layer) const { return layers[static_cast<std::size_t>(layer)]; }
  std::int64_t& rows(int layer, int kv_head) {  // of a packed layer
    return layer_at(layer).rows[static_cast<std::size_t>(kv_head)];
  }
};

}  // namespace tessera
