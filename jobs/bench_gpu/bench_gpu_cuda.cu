#include "jobs/bench_gpu/bench_gpu.hpp"
#include "jobs/bench_gpu/gpu_benches.hpp"
#include "runtime/core/device_gemm.hpp"
#include "runtime/core/error.hpp"

namespace tessera {

BenchReport run_gpu_bench(const BenchOptions& options) {
  using Kind = BenchOptions::Kind;
  const CudaInfo machine = query_cuda();
  if (machine.devices.empty()) throw UsageError("--device cuda: no GPU: {}", machine.problem);
  BenchReport report;
  report.device = machine.devices.front().name;
  report.driver = machine.driver;
  report.library = cuda::DeviceGemm::library_version();
  report.multiprocessors = machine.devices.front().multiprocessors;
  cuda::GpuTimer gpu(report.multiprocessors);
  const bool counts_flops =
      options.kind == Kind::kAttention || options.kind == Kind::kSparse || options.kind == Kind::kGemm;
  if (counts_flops) gpu.measure_gemm(report.limits);
  if (options.kind == Kind::kLoad) {
    gpu.measure_host_copy(report.limits);
  } else if (options.kind != Kind::kAttention && options.kind != Kind::kSparse) {
    gpu.measure_memory(report.limits);
  }
  if (!options.json) print_bench_head(report);
  const auto show = [&](BenchRow row) {
    if (!options.json) print_bench_row(report, row);
    report.rows.push_back(std::move(row));
  };
  switch (options.kind) {
    case Kind::kAttention:
      report.bench = "attention";
      cuda::bench_prefill(options, gpu, show);
      break;
    case Kind::kSparse:
      report.bench = "sparse";
      cuda::bench_sparse_prefill(options, gpu, show);
      break;
    case Kind::kDecode:
      report.bench = "decode";
      cuda::bench_decode(options, gpu, show);
      break;
    case Kind::kSelect:
      report.bench = "select";
      cuda::bench_page_select(options, gpu, show);
      break;
    case Kind::kGemm:
      report.bench = "gemm";
      cuda::bench_linear(options, gpu, show);
      break;
    case Kind::kLoad:
      report.bench = "load";
      cuda::bench_load_weights(options, gpu, show);
      break;
    case Kind::kEndToEnd:
      report.bench = "e2e";
      report.details = cuda::bench_model(options, report.limits, gpu, show);
      break;
    default:
      throw InternalError("internal error: a bench that does not run on a GPU");
  }
  return report;
}

}  // namespace tessera
