// The declared tensors of a model (tensor_plan.hpp) found in a checkpoint: what every way of loading reads.
#pragma once

#include <string>
#include <vector>

#include "io/checkpoint.hpp"
#include "io/model_config.hpp"
#include "runtime/model/tensor_plan.hpp"

namespace tessera {

// Where each of `specs` lies, in their order: all of them are checked, presence, shape and dtype, before any
// is read. InputError names the tensor with both shapes, or one that nothing declares.
std::vector<Checkpoint::Tensor> locate_tensors(const Checkpoint& checkpoint, const std::string& model_dir,
                                               const std::vector<TensorSpec>& specs,
                                               const ModelConfig& config);

// Opens the checkpoint and looks for every declared tensor as above. Reads headers only. Returns the dtypes
// that the files hold, in the order of declare_tensors: config.json may say another.
std::vector<DType> check_checkpoint(const std::string& model_dir, const ModelConfig& config);

// The same, but every tensor that does not match is told, a line each. Dtypes are complete where there are no
// problems. InputError only where the checkpoint cannot be opened.
struct CheckpointReport {
  std::vector<DType> dtypes;
  std::vector<std::string> problems;
};
CheckpointReport inspect_checkpoint(const std::string& model_dir, const ModelConfig& config);

}  // namespace tessera
