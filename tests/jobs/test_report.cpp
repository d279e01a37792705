// `tessera report` on made-up runs: every figure against one worked out here.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "tests/jobs/report_runs.hpp"

using namespace tessera;
using namespace tessera::test;

namespace {

const ReportRow& row_of(const std::vector<ReportRow>& rows, std::int64_t point) {
  for (const ReportRow& row : rows) {
    if (row.point == point) return row;
  }
  FAIL("no row of point " << point);
  return rows.front();
}

// Half the width of a 95 % interval, by a printed table of Student's t.
double half_width(const std::vector<double>& values) {
  const std::map<std::size_t, double> t = {{1, 12.70620}, {2, 4.302653}, {3, 3.182446}, {4, 2.776445}};
  const auto n = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double variance = 0;
  for (const double value : values) variance += std::pow(value - mean, 2) / (n - 1);
  return t.at(values.size() - 1) * std::sqrt(variance / n);
}

}  // namespace

TEST_CASE("report: means over the samples where they are known") {
  MadeRun run("a");
  const auto p = run.add(point_of("vertical_slash", "dense", kSlash));
  SampleRecord first = sample_of(p, 0, 0.25), second = sample_of(p, 1, 0.75), third = sample_of(p, 2, 0.5);
  first.prefill_sparsity = 0.8;
  second.prefill_sparsity = 0.9;
  second.format_ok = false;
  first.prefill_s = 1.5;
  second.prefill_s = 2.0;
  third.prefill_s = 4.0;
  second.tpot_s = 0.03;
  SampleRecord failed = sample_of(p, 3, kMissing);
  failed.error = "too long";
  failed.format_ok = false;  // there is no prediction that could have it
  for (const auto& sample : {first, second, third, failed}) run.add(sample);

  const ReportRow row = rows_of({&run}).at(0);
  CHECK(row.path == "a.h5");
  CHECK(row.prefill == "vertical_slash columns=512 diagonals=256");
  CHECK(row.decode == "dense");
  CHECK(row.samples == 4);
  CHECK(row.failed == 1);
  CHECK(row.format_errors == 1);
  CHECK(row.metric == "f1");
  CHECK(row.score.count == 3);
  CHECK(row.score.mean == doctest::Approx(0.5));
  CHECK(row.score.low == doctest::Approx(std::max(0.0, 0.5 - half_width({0.25, 0.75, 0.5}))));
  CHECK(row.score.method == "Student's t");
  CHECK(row.prefill_sparsity == doctest::Approx((0.8 + 0.9) / 2));
  CHECK(std::isnan(row.decode_sparsity));
  CHECK(row.prefill_s == doctest::Approx(7.5 / 3));
  CHECK(row.tpot_s == doctest::Approx(0.03));
  CHECK(row.change.count == 0);
  CHECK(run.loads == 0);  // no ranks shared a prompt: no arrays are read
  CHECK(std::isnan(row.selected_share));
}

TEST_CASE("report: the change from dense is paired by sample") {
  MadeRun run("a"), other("b");
  const auto sparse = run.add(point_of("dense", "quest", kQuest));
  run.add(sparse, {0.5, 0.25, 1.0, 0.75, 0.0});
  SampleRecord changed = sample_of(sparse, 5, 0.0);
  changed.prompt_hash = "of another prompt";
  run.add(changed);
  const auto dense = other.add(point_of("dense", "dense"));
  other.add(dense, {0.75, 0.25, 0.9, 1.0});  // sample 4 only the sparse run has
  SampleRecord fifth = sample_of(dense, 5, 1.0);
  other.add(fifth);

  SUBCASE("over the samples that both have") {
    const auto rows = rows_of({&run, &other});
    REQUIRE(rows.size() == 2);
    CHECK(rows[0].decode == "dense");
    CHECK(rows[0].change.count == 0);
    CHECK(rows[1].decode == "quest tokens=1024");
    const std::vector<double> differences = {-0.25, 0.0, 0.1, -0.25};
    CHECK(rows[1].change.count == 4);
    CHECK(rows[1].change.mean == doctest::Approx(-0.1));
    CHECK(rows[1].change.low == doctest::Approx(-0.1 - half_width(differences)).epsilon(1e-5));
    CHECK(rows[1].change.high == doctest::Approx(-0.1 + half_width(differences)).epsilon(1e-5));
    CHECK(rows[1].change.method == "Student's t");
  }
  SUBCASE("not from another model, task, length or seed") {
    MadeRun strangers("c");
    const auto add = [&](auto member, auto value) {
      PointInfo point = point_of("dense", "dense");
      point.*member = value;
      strangers.add(strangers.add(point), {1, 1, 1, 1});
    };
    add(&PointInfo::model, "large");
    add(&PointInfo::task, "qa_toefl");
    add(&PointInfo::length, 8192);
    add(&PointInfo::seed, 44);
    for (const ReportRow& row : rows_of({&run, &strangers})) CHECK(row.change.count == 0);
  }
  SUBCASE("from the dense point in the same number formats, where there are several") {
    MadeRun formats("c");
    PointInfo bf16 = point_of("dense", "dense");
    bf16.kv_dtype = "bf16";
    formats.add(formats.add(bf16), {0, 0, 0, 0, 0});
    const auto rows = rows_of({&formats, &run, &other});
    REQUIRE(rows.back().decode == "quest tokens=1024");
    CHECK(rows.back().change.count == 4);
    CHECK(rows.back().change.mean == doctest::Approx(-0.1));
  }
}

TEST_CASE("report: equal differences, and one alone, have no interval") {
  MadeRun run("a");
  run.add(run.add(point_of("dense", "dense")), {0.5, 1.0});
  run.add(run.add(point_of("dense", "quest", kQuest)), {0.4, 0.9});
  run.add(run.add(point_of("vertical_slash", "dense", kSlash)), {0.75});
  const auto rows = rows_of({&run});
  for (const std::int64_t point : {1, 2}) {
    const MeanInterval change = row_of(rows, point).change;
    CHECK(change.mean == doctest::Approx(point == 1 ? -0.1 : 0.25));
    CHECK(std::isnan(change.low));
    CHECK(change.method.empty());
  }
  // Scores lie in [0, 1], so no mean of differences leaves [-1, 1].
  const MeanInterval wide = difference_interval(std::vector<double>{-1, 1});
  CHECK(wide.low == -1);
  CHECK(wide.high == 1);
}

TEST_CASE("report: bytes between ranks as shares of an all-gather") {
  MadeRun run("a", 2);
  const auto p = run.add(point_of("vertical_slash", "dense", kSlash));
  double selected = 0, needed = 0, selecting = 0, full = 0;
  for (int i = 0; i < 3; ++i) {
    SampleRecord sample = sample_of(p, i, 1);
    for (int r = 0; r < 2; ++r) {
      RankTimes rank;
      rank.world_rank = r;
      for (std::uint64_t layer = 0; layer < 2; ++layer) {
        const std::uint64_t bytes = 1000 * static_cast<std::uint64_t>(i + 1) + layer;
        rank.bytes_full.push_back(bytes);
        rank.bytes_selected.push_back(bytes / 3 + layer);
        rank.bytes_needed.push_back(bytes / 4);
        rank.bytes_selecting.push_back(7 + layer);
        full += static_cast<double>(bytes);
        selected += static_cast<double>(bytes / 3 + layer);
        needed += static_cast<double>(bytes / 4);
        selecting += static_cast<double>(7 + layer);
      }
      sample.ranks.push_back(rank);
    }
    run.add(sample);
  }
  run.add(run.add(point_of("dense", "quest", kQuest)), {1, 1});  // its samples measured nothing
  const auto rows = rows_of({&run});
  CHECK(row_of(rows, 0).selected_share == doctest::Approx(selected / full));
  CHECK(row_of(rows, 0).needed_share == doctest::Approx(needed / full));
  CHECK(row_of(rows, 0).selecting_share == doctest::Approx(selecting / full));
  CHECK(std::isnan(row_of(rows, 1).selected_share));
}

TEST_CASE("report: methods with their native budgets") {
  const auto texts_of = [](const PointInfo& point) {
    MadeRun run("a");
    run.add(point);
    const ReportRow row = rows_of({&run}).at(0);
    return row.prefill + " | " + row.decode + " | " + row.dense_layers + (row.share_group ? " | shared" : "");
  };
  CHECK(texts_of(point_of("dense", "dense")) == "dense | dense | ");
  // The window that the task gives is not told, another one is.
  PointInfo slash = point_of("vertical_slash", "dense", kSlash);
  slash.task = "ruler_niah";
  CHECK(texts_of(slash) == "vertical_slash columns=512 diagonals=256 window=256 | dense | ");
  CHECK(texts_of(point_of("block_sparse", "streaming",
                          R"({"prefill":{"native":{"blocks":12,"edge":32}},
                              "decode":{"native":{"sinks":4,"window":128}},
                              "share_group":true,"dense_layers":[0,5]})")) ==
        "block_sparse blocks=12 edge=32 | streaming window=128 | 0,5 | shared");
  CHECK(texts_of(point_of("flexprefill", "quest",
                          R"({"prefill":{"native":{"alpha":0.95,"floor":64,"window":256}},
                              "decode":{"native":{"tokens":64,"per_query_head":1}}})")) ==
        "flexprefill alpha=0.95 floor=64 | quest tokens=64 per_query_head=1 | ");
  // A method that only another build knows.
  CHECK(texts_of(point_of("later", "dense", R"({"prefill":{"native":{"b":2,"a":1.5}}})")) ==
        "later a=1.5 b=2 | dense | ");
}

TEST_CASE("report: order of the rows, points without samples") {
  MadeRun run("a");
  const auto add = [&](const std::string& task, std::int64_t length, const std::string& prefill,
                       const std::string& decode, double sparsity) {
    PointInfo point = point_of(prefill, decode);
    point.task = task;
    point.length = length;
    const auto p = run.add(point);
    if (std::isnan(sparsity)) return;
    SampleRecord sample = sample_of(p, 0, 1);
    (prefill == "dense" ? sample.decode_sparsity : sample.prefill_sparsity) = sparsity;
    run.add(sample);
  };
  add("b", 10, "dense", "quest", 0.5);         // 0
  add("a", 100, "dense", "dense", 0);          // 1
  add("b", 10, "block_sparse", "dense", 0.9);  // 2
  add("b", 10, "block_sparse", "dense", 0.1);  // 3
  add("b", 10, "dense", "dense", kMissing);    // 4
  add("a", 20, "streaming", "dense", 0.2);     // 5
  add("b", 10, "block_sparse", "dense", kMissing);
  std::vector<std::int64_t> order;
  const auto rows = rows_of({&run});
  for (const ReportRow& row : rows) order.push_back(row.point);
  CHECK(order == std::vector<std::int64_t>{5, 1, 4, 0, 3, 2, 6});
  CHECK(rows[2].samples == 0);
  CHECK(std::isnan(rows[2].score.mean));
}

TEST_CASE("report: a budget that is no budget is refused") {
  const auto problem_of = [](const std::string& budget) {
    MadeRun run("a");
    run.add(point_of("vertical_slash", "quest", budget));
    return message_of([&] { rows_of({&run}); }, ExitCode::kInput);
  };
  for (const std::string bad :
       {"{", "", "{\"prefill\":{\"native\":[1]}}", "{\"prefill\":{\"native\":{\"columns\":\"many\"}}}",
        "{\"decode\":{\"native\":3}}", "{\"dense_layers\":3}", "{\"dense_layers\":[-1]}",
        "{\"share_group\":2}"}) {
    CAPTURE(bad);
    CHECK(contains(problem_of(bad), "a.h5: points/budget_json: row 0"));
  }
  CHECK(contains(problem_of("{\"prefill\":{\"native\":{\"columns\":\"many\"}}}"), "prefill.native.columns"));
}
