// What time is charged to: the two phases of a request and the operations inside a layer. The order is part
// of the trace's format (DESIGN.md section 6): append at the end, never reorder.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

namespace tessera {

enum class Phase : int { kPrefill = 0, kDecode = 1 };

// embed and logits belong to no layer; traces hold them under layer -1.
enum class Operation : int {
  kEmbed = 0,
  kQkv,         // norm, projections, rope, append to the cache
  kEstimate,    // scores of a sparse method
  kSelect,      // budget and selection
  kExchange,    // units fetched from, and sent to, other ranks
  kAttend,      // attention proper, merge included
  kOut,         // output projection
  kMlp,         // norm and MLP
  kLogits,      // last norm and language-model head
  kCollective,  // all-reduces of tensor parallelism
};

inline constexpr std::array<std::string_view, 2> kPhaseNames = {"prefill", "decode"};
inline constexpr std::array<std::string_view, 10> kOperationNames = {
    "embed", "qkv", "estimate", "select", "exchange", "attend", "out", "mlp", "logits", "collective"};

inline constexpr int kPhases = static_cast<int>(kPhaseNames.size());
inline constexpr int kOperations = static_cast<int>(kOperationNames.size());

constexpr std::string_view name_of(Phase phase) {
  return kPhaseNames[static_cast<std::size_t>(phase)];
}
constexpr std::string_view name_of(Operation operation) {
  return kOperationNames[static_cast<std::size_t>(operation)];
}

}  // namespace tessera
