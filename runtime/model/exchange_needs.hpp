// What the keys and values of one KV head cost to exchange between sequence-parallel ranks in the prefill of
// one layer, known from the partition alone: what rows see under the mask, and an all-gather.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "parallel/partition.hpp"
#include "runtime/model/attention_plan.hpp"

namespace tessera {

// By rank: pages of 16 tokens that it receives and sends, and blocks of other ranks that it then holds as
// guests.
struct LayerExchange {
  std::vector<std::int64_t> needed_pages, needed_sent;  // seen by rows under the causal mask and the window
  std::vector<std::int64_t> full_pages, full_sent;      // an all-gather
  std::vector<std::int64_t> guest_blocks;               // of whichever the exchange takes
  bool gathers = false;                                 // the exchange takes everything
};

// Blocks first … last − 1 that a rank holds, those after the prompt included.
std::int64_t owned_blocks(const SequencePartition& partition, int rank, std::int64_t first,
                          std::int64_t last);

// window = 0: none. The sizes of the lists of attention/needed_units.hpp, by intervals: a plan asks for many
// grids of many ranks.
LayerExchange layer_exchange(const SequencePartition& partition, std::int64_t window, ExchangeMode mode);

// The same for all layers of a model, each window counted once.
class ExchangeTable {
 public:
  ExchangeTable(const SequencePartition& partition, ExchangeMode mode) : partition_(partition), mode_(mode) {}
  const LayerExchange& of(std::int64_t window);

 private:
  const SequencePartition& partition_;
  ExchangeMode mode_;
  std::map<std::int64_t, LayerExchange> by_window_;
};

}  // namespace tessera
