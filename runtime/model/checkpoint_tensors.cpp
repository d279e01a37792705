#include "runtime/model/checkpoint_tensors.hpp"

#include <set>
#include <utility>

#include "runtime/core/error.hpp"

namespace tessera {
namespace {

constexpr const char* kPrefixes[] = {"model.", "language_model.model.", "model.language_model.", ""};

// Tensors that a checkpoint may carry and a text model does not use.
bool is_ignorable(const std::string& name, const ModelConfig& config) {
  for (const char* part : {"vision_tower.", "multi_modal_projector.", "rotary_emb.inv_freq"}) {
    if (name.find(part) != std::string::npos) return true;
  }
  return config.tied_embeddings && name.ends_with("lm_head.weight");
}

// Where each declared tensor lies in the checkpoint.
class CheckpointIndex {
 public:
  CheckpointIndex(const Checkpoint& checkpoint, const std::string& model_dir)
      : checkpoint_(checkpoint), model_dir_(model_dir) {
    for (const char* prefix : kPrefixes) {
      if (!checkpoint.find(std::string(prefix) + "embed_tokens.weight")) continue;
      prefix_ = prefix;
      return;
    }
    throw InputError(
        "{}: model.embed_tokens.weight: the checkpoint has no such tensor under any known prefix; "
        "check that the directory holds a language model",
        model_dir);
  }

  Checkpoint::Tensor require(const TensorSpec& spec) const {
    for (const std::string& name : candidates(spec)) {
      if (auto tensor = checkpoint_.find(name)) {
        check_shape(*tensor, spec);
        return *tensor;
      }
    }
    throw InputError("{}: {}: missing from the checkpoint; expected shape {}", model_dir_,
                     candidates(spec).front(), expected_shape(spec));
  }

  // Tensors that nothing declares would be dropped silently and change results: a line each.
  std::vector<std::string> unknown(const std::vector<TensorSpec>& specs, const ModelConfig& config) const {
    std::vector<std::string> lines;
    std::set<std::string> known;
    for (const TensorSpec& spec : specs) {
      for (std::string& name : candidates(spec)) known.insert(std::move(name));
    }
    for (const std::string& name : checkpoint_.names()) {
      if (known.contains(name) || is_ignorable(name, config)) continue;
      lines.push_back(fmt::format(
          "{}: {}: a {} model of {} layers has no such tensor; check config.json against the checkpoint",
          model_dir_, name, config.model_type, config.layers));
    }
    return lines;
  }

 private:
  std::vector<std::string> candidates(const TensorSpec& spec) const {
    if (spec.role != TensorRole::kLmHead) return {prefix_ + spec.name};
    return {spec.name, "language_model." + spec.name, prefix_ + spec.name};
  }

  static std::string expected_shape(const TensorSpec& spec) {
    return spec.is_vector ? shape_text({spec.columns}) : shape_text({spec.rows, spec.columns});
  }

  static void check_shape(const Checkpoint::Tensor& tensor, const TensorSpec& spec) {
    const std::vector<std::int64_t>& shape = tensor.entry->shape;
    const bool matches = spec.is_vector ? shape == std::vector<std::int64_t>{spec.columns}
                                        : shape == std::vector<std::int64_t>{spec.rows, spec.columns};
    if (matches) return;
    throw InputError("{}: {}: shape {}, but config.json asks for {}; the two belong to different models",
                     tensor.file->path(), tensor.entry->name, shape_text(shape), expected_shape(spec));
  }

  const Checkpoint& checkpoint_;
  std::string model_dir_;
  std::string prefix_;
};

}  // namespace

std::vector<Checkpoint::Tensor> locate_tensors(const Checkpoint& checkpoint, const std::string& model_dir,
                                               const std::vector<TensorSpec>& specs,
                                               const ModelConfig& config) {
  const CheckpointIndex index(checkpoint, model_dir);
  std::vector<Checkpoint::Tensor> tensors;
  for (const TensorSpec& spec : specs) {
    tensors.push_back(index.require(spec));
    tensors.back().file->dtype_of(*tensors.back().entry);
  }
  const std::vector<std::string> unknown = index.unknown(specs, config);
  if (!unknown.empty()) throw InputError("{}", unknown.front());
  return tensors;
}

std::vector<DType> check_checkpoint(const std::string& model_dir, const ModelConfig& config) {
  const Checkpoint checkpoint = Checkpoint::open(model_dir);
  std::vector<DType> dtypes;
  for (const Checkpoint::Tensor& tensor :
       locate_tensors(checkpoint, model_dir, declare_tensors(config), config)) {
    dtypes.push_back(tensor.file->dtype_of(*tensor.entry));
  }
  return dtypes;
}

CheckpointReport inspect_checkpoint(const std::string& model_dir, const ModelConfig& config) {
  const Checkpoint checkpoint = Checkpoint::open(model_dir);
  const CheckpointIndex index(checkpoint, model_dir);
  const std::vector<TensorSpec> specs = declare_tensors(config);
  CheckpointReport report;
  for (const TensorSpec& spec : specs) {
    try {
      const Checkpoint::Tensor tensor = index.require(spec);
      report.dtypes.push_back(tensor.file->dtype_of(*tensor.entry));
    } catch (const InputError& error) {
      report.problems.emplace_back(error.what());
    }
  }
  for (std::string& line : index.unknown(specs, config)) report.problems.push_back(std::move(line));
  return report;
}

}  // namespace tessera
