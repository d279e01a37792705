#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "io/model_config.hpp"
#include "jobs/bench_gpu/gpu_benches.hpp"
#include "runtime/core/device_gemm.hpp"
#include "runtime/model/tensor_plan.hpp"

namespace tessera::cuda {
namespace {

constexpr std::size_t kWeightBytes = std::size_t{2} << 30;  // products with few rows go round all of these

struct LinearShape {
  std::int64_t inner = 0;
  std::int64_t columns = 0;
};

// Without a model: the projections of Qwen2.5's 72B and 7B, those that read the same input as one.
constexpr LinearShape kStudyShapes[] = {{8192, 10240}, {8192, 8192},  {8192, 59136},
                                        {29568, 8192}, {3584, 4608},  {3584, 3584},
                                        {3584, 37888}, {18944, 3584}, {3584, 152064}};

std::vector<LinearShape> shapes_of(const std::string& model) {
  if (model.empty()) return {std::begin(kStudyShapes), std::end(kStudyShapes)};
  std::set<std::pair<std::int64_t, std::int64_t>> matrices;
  for (const TensorSpec& spec : declare_tensors(read_model_config(model))) {
    if (spec.layer == 0 && !spec.is_vector) matrices.insert({spec.columns, spec.rows});
  }
  std::vector<LinearShape> shapes;
  for (const auto& [inner, columns] : matrices) shapes.push_back({inner, columns});
  return shapes;
}

}  // namespace

void bench_linear(const BenchOptions& options, GpuTimer& gpu, const ShowRow& show) {
  const std::vector<LinearShape> shapes = shapes_of(options.model);
  const std::set<std::int64_t> all_rows{1, 2, 4, 16, 64, options.length};
  std::size_t x_bytes = 0, y_bytes = 0, most = 0;
  for (const LinearShape& shape : shapes) {
    x_bytes = std::max(x_bytes, static_cast<std::size_t>(2 * shape.inner * *all_rows.rbegin()));
    y_bytes = std::max(y_bytes, static_cast<std::size_t>(2 * shape.columns * *all_rows.rbegin()));
    most = std::max(most, static_cast<std::size_t>(2 * shape.inner * shape.columns));
  }
  DeviceBuffer x = gpu.normal(x_bytes, 1);
  DeviceBuffer weights = gpu.normal(std::max(kWeightBytes, most), 2);
  DeviceBuffer y = gpu.empty(y_bytes);
  StreamPool pool(gpu.stream(), gpu.meter());
  DeviceGemm gemm(pool);
  for (const LinearShape& shape : shapes) {
    const std::size_t bytes = static_cast<std::size_t>(2 * shape.inner * shape.columns);
    const std::size_t sets = weights.bytes() / bytes;
    for (const std::int64_t rows : all_rows) {
      LinearParams p;
      p.rows = rows;
      p.inner = shape.inner;
      p.columns = shape.columns;
      p.x = x.data();
      p.y = y.data();
      const bool few = rows <= 64;  // a graph over all sets: one product is too short to time alone
      const int steps = few ? static_cast<int>(std::clamp<std::size_t>(sets, 1, 32)) : 1;
      const auto work = [&](bool by_library) {
        for (int i = 0; i < steps; ++i) {
          p.weight = weights.data() + static_cast<std::size_t>(i) * bytes;
          by_library ? gemm.linear_by_library(p) : gemm.linear(p);
        }
      };
      const auto row_of = [&](bool by_library) {
        const auto run = [&] { work(by_library); };
        const GpuTimes times =
            few ? gpu.time_graph(steps, run, options.repeats) : gpu.time(run, options.repeats);
        BenchRow row;
        row.work = fmt::format("{} rows{}", rows, by_library ? ", library" : "");
        row.shape = fmt::format("{} x {}", shape.columns, shape.inner);
        row.seconds = times.seconds;
        row.sm_clock_mhz = times.sm_clock_mhz;
        row.flops = 2.0 * static_cast<double>(rows) * static_cast<double>(shape.inner * shape.columns);
        row.bytes = static_cast<double>(bytes);
        row.limit = few ? BenchLimit::kRead : BenchLimit::kGemm;
        show(std::move(row));
      };
      row_of(false);
      if (rows <= kFewRows) row_of(true);
    }
  }
}

}  // namespace tessera::cuda
