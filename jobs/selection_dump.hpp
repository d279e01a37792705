// `tessera eval --dump-selections DIR`: what the first sample selected, a file for each layer that a method
// sparsifies.
//   layer_LLL.h5         q (H, S, D), k (K, S, D) as the cache holds them, and what the prefill method or the
//                        method of the cache decided, under the names of `tessera select`, which reads the
//                        file
//   layer_LLL.decode.h5  methods that read pages: q (H, 1, D) of the first decode step, and its page lists
//   (of
//                        another sample where the first ended with its first token)
#pragma once

#include <cstdint>
#include <string>

#include "jobs/selection_file.hpp"
#include "parallel/grid.hpp"
#include "runtime/model/attention_plan.hpp"
#include "runtime/model/selection_listener.hpp"

namespace tessera {

void make_dump_folder(const std::string& folder);  // ResourceError

// On every rank of one replica; rank 0 of its group brings the parts together and writes. A file that cannot
// be written throws there alone, while the others go on to the next collective: it ends the job.
class SelectionDump final : public SelectionListener {
 public:
  SelectionDump(std::string folder, const ModelConfig& config, const AttentionPlan& plan, Grid& grid);

  // Layers come in ascending order: one that is not above the last begins another sample or step, and from
  // there on nothing is written.
  bool wants_prefill() const override { return !prefill_done_; }
  bool wants_decode() const override { return !decode_done_; }
  void prefill_layer(const PrefillLayer& layer) override;
  void decode_layer(const DecodeLayer& layer) override;

 private:
  LayerParts parts(const SequencePartition* partition) const;
  bool is_writer() const { return grid_.group->rank() == 0; }
  std::string path_of(int layer, const char* ending) const;
  void describe(ArrayWriter& out, int layer) const;

  std::string folder_;
  const ModelConfig& config_;
  AttentionPlan plan_;
  LayerPlans layers_;
  Grid& grid_;
  int last_prefill_layer_ = -1;
  int last_decode_layer_ = -1;
  bool prefill_done_ = false;
  bool decode_done_ = false;
};

}  // namespace tessera
