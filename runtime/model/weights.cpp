#include "runtime/model/weights.hpp"

#include <algorithm>
#include <cstring>

#include "runtime/core/error.hpp"
#include "runtime/model/checkpoint_tensors.hpp"

namespace tessera {
namespace {

constexpr std::int64_t kScatterStageBytes = 32 << 20;

class Loader {
 public:
  Loader(const ModelConfig& config, const LoadOptions& options, Communicator& tp, MemoryMeter& meter,
         Weights& weights)
      : config_(config), options_(options), tp_(tp), meter_(meter), weights_(weights) {}

  MatrixView random(const TensorSpec& spec) {
    const Slice slice = slice_of(spec, config_, tp_.rank(), tp_.size());
    MatrixView view{nullptr, slice.rows(), slice.columns(), options_.as_f32 ? DType::kF32 : config_.dtype};
    std::byte* target = own(view.bytes());
    // fp32 copies hold the values of the stored dtype, as they would from a file.
    draw_random(spec, config_, *options_.random_seed, slice, config_.dtype, target);
    if (options_.as_f32 && config_.dtype != DType::kF32) widen_in_place(target, config_.dtype, slice);
    view.data = target;
    return view;
  }

  MatrixView from_file(const TensorSpec& spec, const Checkpoint::Tensor& tensor) {
    const Slice slice = slice_of(spec, config_, tp_.rank(), tp_.size());
    const DType dtype = tensor.file->dtype_of(*tensor.entry);
    const std::byte* data = tensor.data();
    const std::int64_t element = static_cast<std::int64_t>(size_of(dtype));
    MatrixView view{nullptr, slice.rows(), slice.columns(), dtype};
    if (slice.columns() == spec.columns) {
      view.data = data + slice.row_begin * spec.columns * element;
      if (!options_.as_f32 || dtype == DType::kF32) {
        weights_.mapped_bytes += static_cast<std::int64_t>(view.bytes());
        return view;
      }
    } else {
      std::byte* target = own(view.bytes());
      if (slice.columns() * element < options_.short_row_bytes) {
        scatter_columns(spec, data, element, slice, target);
      } else {
        copy_columns(spec, data, element, slice, target);
      }
      view.data = target;
    }
    if (!options_.as_f32 || dtype == DType::kF32) return view;
    const MatrixView wide = widened(view);
    if (slice.columns() != spec.columns) weights_.owned.erase(weights_.owned.end() - 2);  // the narrow slice
    return wide;
  }

  void count_mapped() {
    meter_.add(MemoryKind::kWeights, weights_.mapped_bytes);
    for (const Buffer& buffer : weights_.owned) weights_.bytes += static_cast<std::int64_t>(buffer.bytes());
    weights_.bytes += weights_.mapped_bytes;
  }

 private:
  std::byte* own(std::size_t bytes) {
    weights_.owned.emplace_back(bytes, MemoryKind::kWeights, meter_);
    return weights_.owned.back().data();
  }

  static void copy_columns(const TensorSpec& spec, const std::byte* data, std::int64_t element,
                           const Slice& slice, std::byte* target) {
    const std::int64_t row_bytes = slice.columns() * element;
#pragma omp parallel for schedule(static)
    for (std::int64_t r = 0; r < slice.rows(); ++r) {
      std::memcpy(target + r * row_bytes, data + (r * spec.columns + slice.column_begin) * element,
                  static_cast<std::size_t>(row_bytes));
    }
  }

  void scatter_columns(const TensorSpec& spec, const std::byte* data, std::int64_t element,
                       const Slice& slice, std::byte* target) {
    const int reader = next_reader_++ % tp_.size();
    const std::int64_t row_bytes = slice.columns() * element;
    const std::int64_t rows_a_time = std::max<std::int64_t>(1, kScatterStageBytes / (row_bytes * tp_.size()));
    std::vector<std::byte> stage;
    for (std::int64_t first = 0; first < spec.rows; first += rows_a_time) {
      const std::int64_t rows = std::min(rows_a_time, spec.rows - first);
      if (tp_.rank() == reader) {
        stage.resize(static_cast<std::size_t>(rows * row_bytes * tp_.size()));
        for (int rank = 0; rank < tp_.size(); ++rank) {
          Slice part = slice_of(spec, config_, rank, tp_.size());
          part.row_end = rows;
          copy_columns(spec, data + first * spec.columns * element, element, part,
                       stage.data() + rank * rows * row_bytes);
        }
      }
      const std::vector<std::size_t> counts(tp_.size(), static_cast<std::size_t>(rows * row_bytes));
      tp_.scatter_v(stage.data(), counts, target + first * row_bytes, counts.front(), reader);
    }
  }

  MatrixView widened(const MatrixView& view) {
    MatrixView wide{nullptr, view.rows, view.columns, DType::kF32};
    std::byte* target = own(wide.bytes());
    const std::size_t element = size_of(view.dtype);
#pragma omp parallel for schedule(static)
    for (std::int64_t r = 0; r < view.rows; ++r) {
      const std::size_t first = static_cast<std::size_t>(r * view.columns);
      convert_to_float(view.data + first * element, view.dtype, reinterpret_cast<float*>(target) + first,
                       static_cast<std::size_t>(view.columns));
    }
    wide.data = target;
    return wide;
  }

  // The narrow values lie at the front of the space of the wide ones: widen from the back.
  static void widen_in_place(std::byte* target, DType narrow, const Slice& slice) {
    auto* wide = reinterpret_cast<float*>(target);
    for (std::int64_t i = slice.rows() * slice.columns() - 1; i >= 0; --i) {
      float value;
      convert_to_float(target + static_cast<std::size_t>(i) * size_of(narrow), narrow, &value, 1);
      wide[i] = value;
    }
  }

  const ModelConfig& config_;
  const LoadOptions& options_;
  Communicator& tp_;
  MemoryMeter& meter_;
  Weights& weights_;
  int next_reader_ = 0;
};

std::vector<float> as_floats(const MatrixView& view) {
  std::vector<float> values(static_cast<std::size_t>(view.rows * view.columns));
  convert_to_float(view.data, view.dtype, values.data(), values.size());
  return values;
}

void place(Weights& weights, const TensorSpec& spec, const MatrixView& view) {
  LayerWeights* layer = spec.layer >= 0 ? &weights.layers[static_cast<std::size_t>(spec.layer)] : nullptr;
  switch (spec.role) {
    case TensorRole::kEmbedding:
      weights.embedding = view;
      break;
    case TensorRole::kLmHead:
      weights.lm_head = view;
      break;
    case TensorRole::kFinalNorm:
      weights.final_norm = as_floats(view);
      break;
    case TensorRole::kInputNorm:
      layer->input_norm = as_floats(view);
      break;
    case TensorRole::kPostAttentionNorm:
      layer->post_attention_norm = as_floats(view);
      break;
    case TensorRole::kPreMlpNorm:
      layer->pre_mlp_norm = as_floats(view);
      break;
    case TensorRole::kPostMlpNorm:
      layer->post_mlp_norm = as_floats(view);
      break;
    case TensorRole::kQNorm:
      layer->q_norm = as_floats(view);
      break;
    case TensorRole::kKNorm:
      layer->k_norm = as_floats(view);
      break;
    case TensorRole::kQBias:
      layer->q_bias = as_floats(view);
      break;
    case TensorRole::kKBias:
      layer->k_bias = as_floats(view);
      break;
    case TensorRole::kVBias:
      layer->v_bias = as_floats(view);
      break;
    case TensorRole::kQ:
      layer->q = view;
      break;
    case TensorRole::kK:
      layer->k = view;
      break;
    case TensorRole::kV:
      layer->v = view;
      break;
    case TensorRole::kO:
      layer->o = view;
      break;
    case TensorRole::kGate:
      layer->gate = view;
      break;
    case TensorRole::kUp:
      layer->up = view;
      break;
    case TensorRole::kDown:
      layer->down = view;
      break;
  }
}

}  // namespace

Weights load_weights(const std::string& model_dir, const ModelConfig& config, const LoadOptions& options,
                     Communicator& tp, MemoryMeter& meter) {
  const std::vector<TensorSpec> specs = declare_tensors(config);
  Weights weights;
  weights.layers.resize(static_cast<std::size_t>(config.layers));
  weights.first_vocab_row = vocab_begin(config.vocab, tp.rank(), tp.size());
  Loader loader(config, options, tp, meter, weights);

  if (options.random_seed) {
    for (const TensorSpec& spec : specs) place(weights, spec, loader.random(spec));
  } else {
    weights.checkpoint = Checkpoint::open(model_dir);
    const auto tensors = locate_tensors(*weights.checkpoint, model_dir, specs, config);
    for (std::size_t i = 0; i < specs.size(); ++i)
      place(weights, specs[i], loader.from_file(specs[i], tensors[i]));
  }
  if (config.tied_embeddings) weights.lm_head = weights.embedding;
  loader.count_mapped();
  return weights;
}

std::uint64_t touch_all(const Weights& weights) {
  std::vector<const MatrixView*> views{&weights.embedding};
  if (weights.lm_head.data != weights.embedding.data) views.push_back(&weights.lm_head);
  for (const LayerWeights& w : weights.layers) {
    views.insert(views.end(), {&w.q, &w.k, &w.v, &w.o, &w.gate, &w.up, &w.down});
  }
  constexpr std::size_t kPiece = 4 << 20;  // bytes a task
  std::uint64_t sum = 0;
  for (const MatrixView* view : views) {
    const std::size_t bytes = view->bytes();
#pragma omp parallel for schedule(dynamic) reduction(+ : sum)
    for (std::size_t first = 0; first < bytes; first += kPiece) {
      const std::size_t last = std::min(bytes, first + kPiece);
      for (std::size_t i = first; i + sizeof(std::uint64_t) <= last; i += sizeof(std::uint64_t)) {
        std::uint64_t word;
        std::memcpy(&word, view->data + i, sizeof word);
        sum += word;
      }
    }
  }
  return sum;
}

}  // namespace tessera
