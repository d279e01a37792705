// What the benches on a GPU report: rows of times beside a limit measured in the same run, as a table, as
// JSON and as an HDF5 trace.
#pragma once

#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tessera {

// Rates that this GPU reached in this run; 0: not measured.
struct BenchLimits {
  double read_bytes_per_s = 0;       // a plain read of device memory
  double copy_bytes_per_s = 0;       // a device copy, read and written bytes together
  double gemm_flop_per_s = 0;        // cuBLASLt, bf16, 8192³
  double gemm_sm_clock_mhz = 0;      // during that
  double host_copy_bytes_per_s = 0;  // from pinned host memory to the device
};

enum class BenchLimit { kNone, kRead, kGemm, kHostCopy };

struct BenchRow {
  std::string work;             // "dense", "quest .95: score"
  std::string shape;            // "D128-H64-K8-128K"
  std::vector<double> seconds;  // of each repetition, at least one
  double flops = 0;             // 0: not counted
  double bytes = 0;             // that must be read; 0: not counted
  BenchLimit limit = BenchLimit::kNone;
  double sparsity = std::numeric_limits<double>::quiet_NaN();  // of causal pairs, as measured; NaN: no such
  double dense_seconds = 0;  // median of dense attention on this shape; 0: no such
  double sm_clock_mhz = 0;   // measured on the GPU right after the work; median
};

struct BenchReport {
  std::string bench;    // "decode"
  std::string device;   // "NVIDIA H200"
  std::string driver;   // CUDA version of the driver, "13.0"
  std::string library;  // cuBLASLt's version
  int multiprocessors = 0;
  BenchLimits limits;
  std::vector<BenchRow> rows;
  nlohmann::json details;  // what a bench tells besides; null: nothing
};

double median_of(std::vector<double> values);  // of at least one

void print_bench_head(const BenchReport& report);
void print_bench_row(const BenchReport& report, const BenchRow& row);
nlohmann::json bench_json(const BenchReport& report);

// HDF5: /bench has a column (1-D dataset) for each fact of a row; the file's attributes tell device and
// build. ResourceError.
void write_bench_trace(const BenchReport& report, const std::string& path);

}  // namespace tessera
