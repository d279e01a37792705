// The rows of a bench on a GPU, without one: shapes, shares, and the trace that others read.
#include <doctest/doctest.h>

#include <cstdio>
#include <filesystem>

#include "io/array_file.hpp"
#include "jobs/bench_shape.hpp"
#include "jobs/bench_table.hpp"
#include "runtime/core/error.hpp"

using namespace tessera;

TEST_CASE("bench shapes are read as they are written") {
  for (const char* text : {"D128-H64-K8-128K", "D64-H16-K2-32K", "D256-H8-K8-1000", "D128-H8-K1-1K-N8"}) {
    CHECK(name_of(parse_bench_shape(text, "--shapes")) == text);
  }
  const BenchShape shape = parse_bench_shape("D128-H64-K8-128K-N8", "--shapes");
  CHECK(shape.length == 131072);
  CHECK(shape.sequences == 8);
  for (const char* text : {"", "D128", "D128-H64-K8", "D96-H64-K8-1K", "D128-H64-K7-1K", "D128-H0-K8-1K",
                           "D128-H8-K8-0", "D128-H8-K8-1K-N0", "D128-H8-K8-1K-N300", "D128-H8-K8-1K-N2-x",
                           "H8-D128-K8-1K", "D128-H8-K8-99999999999999999999"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(parse_bench_shape(text, "--shapes"), UsageError);
  }
}

TEST_CASE("a bench trace holds the medians and shares of its rows") {
  BenchReport report;
  report.bench = "decode";
  report.device = "a GPU";
  report.limits.read_bytes_per_s = 4e12;
  BenchRow dense;
  dense.work = "dense";
  dense.shape = "D128-H64-K8-128K";
  dense.seconds = {3e-4, 1e-4, 2e-4, 4e-4};
  dense.bytes = 5e8;
  dense.limit = BenchLimit::kRead;
  BenchRow quest = dense;
  quest.work = "quest 0.95";
  quest.seconds = {5e-5};
  quest.bytes = 0;
  quest.limit = BenchLimit::kNone;
  quest.dense_seconds = median_of(dense.seconds);
  report.rows = {dense, quest};
  const std::string path = (std::filesystem::temp_directory_path() / "tessera_test_bench_table.h5").string();
  write_bench_trace(report, path);
  const ArrayReader file(path);
  const std::vector<double> medians = file.doubles("bench/seconds_median");
  REQUIRE(medians.size() == 2);
  CHECK(medians[0] == doctest::Approx(2.5e-4));
  CHECK(file.doubles("bench/share_of_limit")[0] == doctest::Approx(0.5));
  CHECK(file.doubles("bench/share_of_dense")[1] == doctest::Approx(0.2));
  CHECK(file.doubles("bench/bytes")[1] != file.doubles("bench/bytes")[1]);  // NaN
  CHECK(file.has("bench/work"));
  const nlohmann::json json = bench_json(report);
  CHECK(json["rows"][0]["share_of_limit"].get<double>() == doctest::Approx(0.5));
  CHECK(json["rows"][0]["share_of_dense"].is_null());
  std::filesystem::remove(path);
}
