#include "jobs/bench_table.hpp"

#include <fmt/chrono.h>
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "io/array_file.hpp"
#include "jobs/info.hpp"

namespace tessera {
namespace {

using nlohmann::json;

constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();

const char* name_of(BenchLimit limit) {
  switch (limit) {
    case BenchLimit::kRead:
      return "read";
    case BenchLimit::kGemm:
      return "gemm";
    case BenchLimit::kHostCopy:
      return "host_copy";
    case BenchLimit::kNone:
      break;
  }
  return "";
}

double rate(double amount, double seconds) {
  return amount > 0 ? amount / seconds : kMissing;
}

// Work rate over the limit's; NaN without one.
double share_of_limit(const BenchReport& report, const BenchRow& row) {
  const double seconds = median_of(row.seconds);
  if (row.limit == BenchLimit::kRead && report.limits.read_bytes_per_s > 0)
    return row.bytes / seconds / report.limits.read_bytes_per_s;
  if (row.limit == BenchLimit::kGemm && report.limits.gemm_flop_per_s > 0)
    return row.flops / seconds / report.limits.gemm_flop_per_s;
  if (row.limit == BenchLimit::kHostCopy && report.limits.host_copy_bytes_per_s > 0)
    return row.bytes / seconds / report.limits.host_copy_bytes_per_s;
  return kMissing;
}

double share_of_dense(const BenchRow& row) {
  return row.dense_seconds > 0 ? median_of(row.seconds) / row.dense_seconds : kMissing;
}

std::string cell(double value, const char* format) {
  return value == value ? fmt::format(fmt::runtime(format), value) : std::string("-");
}

// What is gained, beside what would be if time followed the pairs that are kept.
std::string speed_up_text(const BenchRow& row) {
  if (!(row.sparsity < 1) || !(row.dense_seconds > 0)) return "";
  return fmt::format("  speed-up {:.2f} of {:.2f}", 1 / share_of_dense(row), 1 / (1 - row.sparsity));
}

std::string now_in_utc() {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}",
                     fmt::gmtime(std::chrono::system_clock::to_time_t(std::chrono::system_clock::now())));
}

}  // namespace

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

void print_bench_head(const BenchReport& report) {
  fmt::print("{}, {} multiprocessors, driver {}, cuBLASLt {}\n", report.device, report.multiprocessors,
             report.driver, report.library);
  if (report.limits.read_bytes_per_s > 0)
    fmt::print("limits: read {:.2f} TB/s, copy {:.2f} TB/s\n", report.limits.read_bytes_per_s * 1e-12,
               report.limits.copy_bytes_per_s * 1e-12);
  if (report.limits.gemm_flop_per_s > 0)
    fmt::print("limits: GEMM 8192x8192x8192 {:.0f} TFLOP/s at {:.0f} MHz\n",
               report.limits.gemm_flop_per_s * 1e-12, report.limits.gemm_sm_clock_mhz);
  if (report.limits.host_copy_bytes_per_s > 0)
    fmt::print("limits: pinned host memory to device {:.1f} GB/s\n",
               report.limits.host_copy_bytes_per_s * 1e-9);
  fmt::print("{:<22} {:<26} {:>11} {:>11} {:>8} {:>6} {:>9} {:>9} {:>7}\n", "shape", "work", "median us",
             "best us", "TFLOP/s", "TB/s", "of limit", "of dense", "SM MHz");
}

void print_bench_row(const BenchReport& report, const BenchRow& row) {
  const double seconds = median_of(row.seconds);
  const double best = *std::min_element(row.seconds.begin(), row.seconds.end());
  fmt::print("{:<22} {:<26} {:>11.1f} {:>11.1f} {:>8} {:>6} {:>9} {:>9} {:>7.0f}{}\n", row.shape, row.work,
             seconds * 1e6, best * 1e6, cell(rate(row.flops, seconds) * 1e-12, "{:.1f}"),
             cell(rate(row.bytes, seconds) * 1e-12, "{:.3g}"), cell(share_of_limit(report, row), "{:.3f}"),
             cell(share_of_dense(row), "{:.4f}"), row.sm_clock_mhz, speed_up_text(row));
  std::fflush(stdout);
}

json bench_json(const BenchReport& report) {
  const auto number = [](double value) { return value == value ? json(value) : json(nullptr); };
  json rows = json::array();
  for (const BenchRow& row : report.rows) {
    const double seconds = median_of(row.seconds);
    rows.push_back({{"shape", row.shape},
                    {"work", row.work},
                    {"seconds", row.seconds},
                    {"seconds_median", seconds},
                    {"flop_per_s", number(rate(row.flops, seconds))},
                    {"bytes_per_s", number(rate(row.bytes, seconds))},
                    {"limit", name_of(row.limit)},
                    {"share_of_limit", number(share_of_limit(report, row))},
                    {"share_of_dense", number(share_of_dense(row))},
                    {"sparsity", number(row.sparsity)},
                    {"sm_clock_mhz", row.sm_clock_mhz}});
  }
  json result = {{"bench", report.bench},
                 {"device", report.device},
                 {"multiprocessors", report.multiprocessors},
                 {"driver", report.driver},
                 {"cublaslt", report.library},
                 {"read_bytes_per_s", report.limits.read_bytes_per_s},
                 {"copy_bytes_per_s", report.limits.copy_bytes_per_s},
                 {"gemm_flop_per_s", report.limits.gemm_flop_per_s},
                 {"host_copy_bytes_per_s", report.limits.host_copy_bytes_per_s},
                 {"rows", std::move(rows)}};
  if (!report.details.is_null()) result["details"] = report.details;
  return result;
}

void write_bench_trace(const BenchReport& report, const std::string& path) {
  ArrayWriter file;
  const std::vector<std::int64_t> shape{static_cast<std::int64_t>(report.rows.size())};
  const auto texts = [&](const char* name, const char* meaning, auto&& value_of) {
    std::vector<std::string> values;
    for (const BenchRow& row : report.rows) values.push_back(value_of(row));
    file.add_text(name, values, meaning);
  };
  const auto numbers = [&](const char* name, const char* meaning, auto&& value_of) {
    std::vector<double> values;
    for (const BenchRow& row : report.rows) values.push_back(value_of(row));
    file.add(name, shape, values, meaning);
  };
  texts("bench/work", "what was timed", [](const BenchRow& row) { return row.work; });
  texts("bench/shape", "head dimension, query heads, KV heads, tokens, sequences; or rows x inner x columns",
        [](const BenchRow& row) { return row.shape; });
  numbers("bench/seconds_median", "median time, seconds",
          [](const BenchRow& row) { return median_of(row.seconds); });
  numbers("bench/seconds_least", "least time, seconds",
          [](const BenchRow& row) { return *std::min_element(row.seconds.begin(), row.seconds.end()); });
  numbers("bench/seconds_most", "longest time, seconds",
          [](const BenchRow& row) { return *std::max_element(row.seconds.begin(), row.seconds.end()); });
  numbers("bench/repeats", "timed repetitions",
          [](const BenchRow& row) { return static_cast<double>(row.seconds.size()); });
  numbers("bench/flops", "floating-point operations; NaN: not counted",
          [](const BenchRow& row) { return row.flops > 0 ? row.flops : kMissing; });
  numbers("bench/bytes", "bytes that must be read; NaN: not counted",
          [](const BenchRow& row) { return row.bytes > 0 ? row.bytes : kMissing; });
  texts("bench/limit", "the limit that counts: gemm, read, host_copy or none",
        [](const BenchRow& row) { return std::string(name_of(row.limit)); });
  numbers("bench/share_of_limit", "rate over the limit's rate in this run",
          [&](const BenchRow& row) { return share_of_limit(report, row); });
  numbers("bench/share_of_dense", "time over that of dense attention on the shape",
          [](const BenchRow& row) { return share_of_dense(row); });
  numbers("bench/sparsity", "share of the causal pairs that is left out, as measured; NaN: no such",
          [](const BenchRow& row) { return row.sparsity; });
  numbers("bench/sm_clock", "clock of the multiprocessors right after the work, MHz",
          [](const BenchRow& row) { return row.sm_clock_mhz; });
  numbers("bench/limit_read", "a plain read of device memory, bytes/s; NaN: not measured",
          [&](const BenchRow&) { return rate(report.limits.read_bytes_per_s, 1); });
  numbers("bench/limit_copy", "a device copy, bytes/s read and written; NaN: not measured",
          [&](const BenchRow&) { return rate(report.limits.copy_bytes_per_s, 1); });
  numbers("bench/limit_gemm", "bf16 GEMM 8192x8192x8192, FLOP/s; NaN: not measured",
          [&](const BenchRow&) { return rate(report.limits.gemm_flop_per_s, 1); });
  numbers("bench/limit_host_copy", "pinned host memory to the device, bytes/s; NaN: not measured",
          [&](const BenchRow&) { return rate(report.limits.host_copy_bytes_per_s, 1); });
  const BuildInfo build = collect_build_info();
  file.attribute("schema_name", "tessera_bench");
  file.attribute("schema_version", "1");
  file.attribute("bench", report.bench);
  file.attribute("device_name", report.device);
  file.attribute("driver", report.driver);
  file.attribute("cublaslt", report.library);
  file.attribute("source", fmt::format("tessera {} ({}{})", build.version, build.git_revision,
                                       build.git_dirty ? ", changed" : ""));
  file.attribute("compiler", build.compiler);
  file.attribute("cuda_compiler", build.cuda_compiler);
  file.attribute("date_created", now_in_utc());
  if (!report.details.is_null()) file.attribute("details_json", report.details.dump());
  file.write(path);
}

}  // namespace tessera
