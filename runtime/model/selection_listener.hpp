// What layers select, as it happens (--dump-selections).
#pragma once

#include <cstdint>
#include <span>

#include "attention/select.hpp"
#include "parallel/partition.hpp"

namespace tessera {

// Of what a layer selected on this rank. Called on every rank of the group, in the order of the layers; what
// it calls may be collective. Pointers last for the call.
class SelectionListener {
 public:
  virtual ~SelectionListener() = default;
  // Whether it is of use to tell it: where that costs, what it does not want is not told.
  virtual bool wants_prefill() const { return true; }
  virtual bool wants_decode() const { return true; }
  struct PrefillLayer {
    int layer = 0;
    const SequencePartition* partition = nullptr;
    std::span<const std::int32_t> positions;  // (T) of this rank's rows
    const float* q = nullptr;                 // (T, H, D)
    const float* k = nullptr;                 // (T, K, D) as the cache holds them
    const PrefillChoice* choice = nullptr;    // null: this layer attends densely
    const HeadLists* kept = nullptr;          // null: the cache keeps everything
  };
  virtual void prefill_layer(const PrefillLayer& layer) = 0;
  struct DecodeLayer {
    int layer = 0;
    std::int32_t position = 0;
    const float* q = nullptr;          // (H, D)
    const HeadLists* pages = nullptr;  // K lists, or H
  };
  virtual void decode_layer(const DecodeLayer& layer) = 0;
};

}  // namespace tessera
