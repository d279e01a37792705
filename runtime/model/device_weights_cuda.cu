#include <span>

#include "io/checkpoint.hpp"
#include "runtime/core/cuda_stream.hpp"
#include "runtime/core/cuda_upload.hpp"
#include "runtime/core/device_ops.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/random.hpp"
#include "runtime/core/tensor.hpp"
#include "runtime/model/checkpoint_tensors.hpp"
#include "runtime/model/device_weights.hpp"
#include "runtime/model/tensor_plan.hpp"
#include "runtime/model/weights.hpp"

namespace tessera::cuda {
namespace {

constexpr std::size_t kAlignment = 256;

// k and v follow q, and up follows gate, without a gap.
bool follows_directly(TensorRole role) {
  return role == TensorRole::kK || role == TensorRole::kV || role == TensorRole::kUp;
}

// What the name says in DeviceLayerWeights and DeviceWeights; null for a tensor that begins nothing.
const std::byte** place_of(DeviceWeights& weights, const TensorSpec& spec) {
  DeviceLayerWeights* layer =
      spec.layer >= 0 ? &weights.layers[static_cast<std::size_t>(spec.layer)] : nullptr;
  switch (spec.role) {
    case TensorRole::kEmbedding:
      return &weights.embedding;
    case TensorRole::kLmHead:
      return &weights.lm_head;
    case TensorRole::kFinalNorm:
      return &weights.final_norm;
    case TensorRole::kInputNorm:
      return &layer->input_norm;
    case TensorRole::kPostAttentionNorm:
      return &layer->post_attention_norm;
    case TensorRole::kPreMlpNorm:
      return &layer->pre_mlp_norm;
    case TensorRole::kPostMlpNorm:
      return &layer->post_mlp_norm;
    case TensorRole::kQNorm:
      return &layer->q_norm;
    case TensorRole::kKNorm:
      return &layer->k_norm;
    case TensorRole::kQBias:
      return &layer->q_bias;
    case TensorRole::kKBias:
      return &layer->k_bias;
    case TensorRole::kVBias:
      return &layer->v_bias;
    case TensorRole::kQ:
      return &layer->qkv;
    case TensorRole::kO:
      return &layer->o;
    case TensorRole::kGate:
      return &layer->gate_up;
    case TensorRole::kDown:
      return &layer->down;
    case TensorRole::kK:
    case TensorRole::kV:
    case TensorRole::kUp:
      return nullptr;
  }
  return nullptr;
}

class DeviceLoader {
 public:
  DeviceLoader(const ModelConfig& config, const DeviceLoadOptions& options, MemoryMeter& meter,
               DeviceWeights& weights)
      : config_(config),
        options_(options),
        weights_(weights),
        uploader_(options.device),
        stream_(options.device),
        pool_(stream_, meter) {}

  Slice slice(const TensorSpec& spec) const {
    return slice_of(spec, config_, options_.tp_rank, options_.tp_size);
  }

  // The values that load_weights draws.
  void draw(const TensorSpec& spec, std::byte* target) {
    const Slice part = slice(spec);
    const RandomValues values = random_values_of(spec, config_);
    DrawParams p;
    p.rows = part.rows();
    p.columns = part.columns();
    p.row_begin = part.row_begin;
    p.column_begin = part.column_begin;
    p.whole_columns = spec.columns;
    p.seed = *options_.random_seed;
    p.random_stream = stream_of(spec.name);
    p.center = values.center;
    p.half_width = values.half_width;
    p.dtype = config_.dtype;
    p.stream = stream_;
    const auto draw_to = [&p](std::byte* place) {
      p.target = place;
      draw_uniform(p);
    };
    if (config_.dtype == options_.dtype) {
      draw_to(target);
    } else {
      round_from(config_.dtype, part.rows() * part.columns(), target, draw_to);
    }
  }

  void read(const TensorSpec& spec, const Checkpoint::Tensor& tensor, std::byte* target) {
    const Slice part = slice(spec);
    const DType dtype = tensor.file->dtype_of(*tensor.entry);
    UploadPiece piece;
    piece.source =
        tensor.data() +
        static_cast<std::size_t>(part.row_begin * spec.columns + part.column_begin) * size_of(dtype);
    piece.rows = part.rows();
    piece.row_bytes = static_cast<std::size_t>(part.columns()) * size_of(dtype);
    piece.source_stride = static_cast<std::size_t>(spec.columns) * size_of(dtype);
    if (dtype == options_.dtype) {
      piece.target = target;
      pieces_.push_back(piece);  // all of them go together
      return;
    }
    round_from(dtype, part.rows() * part.columns(), target, [&](std::byte* place) {
      piece.target = place;
      upload({&piece, 1});
    });
  }

  void finish() {
    upload(pieces_);
    stream_.synchronize();
  }

 private:
  // For values of another dtype: they are made in a place of their own on the device, and rounded from there.
  template <class Make>
  void round_from(DType dtype, std::int64_t count, std::byte* target, const Make& make) {
    const StreamPool::Block place = pool_.take(static_cast<std::size_t>(count) * size_of(dtype));
    make(place.data());
    convert(place.data(), dtype, target, options_.dtype, count, stream_);
    stream_.synchronize();  // uploads run in a stream of their own, and may be the next to use the place
  }

  void upload(std::span<const UploadPiece> pieces) {
    const UploadResult result = uploader_.upload(pieces);
    weights_.uploaded_bytes += result.bytes;
    weights_.upload_seconds += result.seconds;
  }

  const ModelConfig& config_;
  const DeviceLoadOptions& options_;
  DeviceWeights& weights_;
  Uploader uploader_;
  CudaStream stream_;
  StreamPool pool_;
  std::vector<UploadPiece> pieces_;
};

}  // namespace

DeviceWeights load_device_weights(const std::string& model_dir, const ModelConfig& config,
                                  const DeviceLoadOptions& options, MemoryMeter& meter) {
  TESSERA_CHECK(options.dtype == DType::kBF16 || options.dtype == DType::kF16);
  const DeviceScope scope(options.device);
  const std::vector<TensorSpec> specs = declare_tensors(config);
  std::optional<Checkpoint> checkpoint;
  std::vector<Checkpoint::Tensor> tensors;
  if (!options.random_seed) {
    checkpoint.emplace(Checkpoint::open(model_dir));
    tensors = locate_tensors(*checkpoint, model_dir, specs, config);
  }
  DeviceWeights weights;
  weights.dtype = options.dtype;
  weights.layers.resize(static_cast<std::size_t>(config.layers));
  weights.first_vocab_row = vocab_begin(config.vocab, options.tp_rank, options.tp_size);
  weights.vocab_rows =
      vocab_begin(config.vocab, options.tp_rank + 1, options.tp_size) - weights.first_vocab_row;

  std::vector<std::size_t> offsets;
  std::size_t end = 0;
  for (const TensorSpec& spec : specs) {
    const Slice part = slice_of(spec, config, options.tp_rank, options.tp_size);
    if (!follows_directly(spec.role)) end = (end + kAlignment - 1) / kAlignment * kAlignment;
    offsets.push_back(end);
    end += static_cast<std::size_t>(part.rows() * part.columns()) * size_of(options.dtype);
  }
  weights.storage = DeviceBuffer(end, options.device, MemoryKind::kWeights, meter);

  DeviceLoader loader(config, options, meter, weights);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    std::byte* target = weights.storage.data() + offsets[i];
    if (const std::byte** place = place_of(weights, specs[i])) *place = target;
    if (options.random_seed) {
      loader.draw(specs[i], target);
    } else {
      loader.read(specs[i], tensors[i], target);
    }
  }
  loader.finish();
  if (config.tied_embeddings) weights.lm_head = weights.embedding;
  return weights;
}

}  // namespace tessera::cuda
