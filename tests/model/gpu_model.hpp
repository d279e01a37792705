// Models drawn on the GPU beside those of drawn_models.hpp.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/model/device_model.hpp"
#include "tests/cuda_support.hpp"
#include "tests/model/drawn_models.hpp"

namespace tessera::testing {

using cuda_test::Gpu;

// A drawn model on the GPU, its cache full of NaN.
struct GpuModel {
  GpuModel(const ModelConfig& model_config, std::int64_t prompt, std::int64_t total, int batch,
           const AttentionPlan& plan = {}, bool graphs = true)
      : config(model_config), rope(resolve_rope(config, "auto", total).rope) {
    cuda::DeviceLoadOptions load;
    load.device = Gpu::device();
    load.dtype = config.dtype;
    load.random_seed = kWeightSeed;
    weights = cuda::load_device_weights("", config, load, meter);
    cuda::DeviceModelShape shape;
    shape.device = Gpu::device();
    shape.kv_slots = kv_slots_needed(config, {{1, 1, 1}, prompt, total, batch, config.dtype}, plan);
    shape.max_tokens = total;
    shape.batch = batch;
    shape.graphs = graphs;
    model.emplace(config, rope, weights, shape, meter, plan);
    const cuda::CudaStream stream(Gpu::device());
    cuda::DeviceKvCache& cache = model->cache();
    const KvShape& kv = cache.tables().shape();
    const auto slots = static_cast<std::size_t>(cache.capacity());
    cuda::fill_bytes(cache.slots(), 0xff, slots * kv.slot_bytes(), stream);
    if (kv.page_bounds) cuda::fill_bytes(cache.bounds(), 0xff, slots * kv.bounds_bytes(), stream);
    stream.synchronize();
  }

  ModelConfig config;
  RopeConfig rope;
  MemoryMeter meter;
  cuda::DeviceWeights weights;
  std::optional<cuda::DeviceModel> model;
};

// The middle one of the largest differences of each row.
inline double median_row_error(const std::vector<float>& a, const std::vector<float>& b, std::size_t vocab) {
  REQUIRE(a.size() == b.size());
  std::vector<double> errors;
  for (std::size_t first = 0; first < a.size(); first += vocab) {
    errors.push_back(largest_difference(a.data() + first, b.data() + first, vocab));
  }
  std::sort(errors.begin(), errors.end());
  return errors[errors.size() / 2];
}

}  // namespace tessera::testing
