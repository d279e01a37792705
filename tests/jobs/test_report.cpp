// `tessera report` on made-up runs: every figure against one worked out here.
#include <doctest/doctest.h>

#include <cmath>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "io/trace_writer.hpp"
#include "jobs/report.hpp"
#include "jobs/report_table.hpp"
#include "jobs/trace_command.hpp"
#include "runtime/core/error.hpp"
#include "tests/io/trace_samples.hpp"

using namespace tessera;
using namespace tessera::test;

namespace {

const char* const kSlash =
    R"({"prefill":{"method":"vertical_slash","native":{"columns":512,"diagonals":256,"window":256}},
        "decode":{"method":"dense","native":{}},"share_group":false,"dense_layers":[]})";
const char* const kQuest =
    R"({"prefill":{"method":"dense","native":{}},
        "decode":{"method":"quest","native":{"tokens":1024,"per_query_head":0}}})";

PointInfo point_of(const std::string& prefill, const std::string& decode, const std::string& budget = "{}") {
  PointInfo point;
  point.model = "tiny";
  point.task = "qa_squad";
  point.length = 4096;
  point.seed = 43;
  point.prefill = prefill;
  point.decode = decode;
  point.budget_json = budget;
  return point;
}

SampleRecord sample_of(std::int64_t point, std::int64_t number, double score) {
  SampleRecord sample;
  sample.point = point;
  sample.sample = number;
  sample.score = score;
  sample.metric = "f1";
  sample.prompt_hash = "hash of " + std::to_string(number);
  return sample;
}

// A run of one attempt, in memory, with the arrays of its samples.
class MadeRun {
 public:
  explicit MadeRun(std::string id, int sequence_ranks = 1) : sequence_ranks_(sequence_ranks) {
    tables_.run_id = std::move(id);
    for (int rank = 0; rank < sequence_ranks; ++rank) {
      AttemptRank row;
      row.world_rank = row.sp = rank;
      tables_.attempts.push_back(row);
    }
  }
  std::int64_t add(PointInfo point) {
    point.sp = sequence_ranks_;
    tables_.points.push_back(std::move(point));
    return static_cast<std::int64_t>(tables_.points.size()) - 1;
  }
  void add(SampleRecord sample) {
    whole_.push_back(sample);
    sample.ranks.clear();
    tables_.samples.push_back(std::move(sample));
  }
  void add(std::int64_t point, const std::vector<double>& scores) {
    for (std::size_t i = 0; i < scores.size(); ++i)
      add(sample_of(point, static_cast<std::int64_t>(i), scores[i]));
  }
  ReportSource source() {
    return {tables_.run_id + ".h5", &tables_, [this](std::size_t i) {
              ++loads;
              return whole_.at(i);
            }};
  }

  int loads = 0;

 private:
  int sequence_ranks_;
  TraceTables tables_;
  std::vector<SampleRecord> whole_;
};

std::vector<ReportRow> rows_of(std::vector<MadeRun*> runs) {
  std::vector<ReportSource> sources;
  for (MadeRun* run : runs) sources.push_back(run->source());
  return report_rows(sources);
}

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

std::vector<std::vector<std::string>> cells_of(const std::string& csv) {
  std::vector<std::vector<std::string>> lines(1, std::vector<std::string>(1));
  bool quoted = false;
  for (const char c : csv) {
    if (c == '"') {
      quoted = !quoted;
    } else if (c == ',' && !quoted) {
      lines.back().emplace_back();
    } else if (c == '\n' && !quoted) {
      lines.emplace_back(1);
    } else {
      lines.back().back() += c;
    }
  }
  lines.pop_back();
  return lines;
}

std::string printed(const ReportOptions& options) {
  char* text = nullptr;
  std::size_t size = 0;
  std::FILE* out = ::open_memstream(&text, &size);
  int code = -1;
  try {
    code = run_report(options, out);
  } catch (...) {
    std::fclose(out);
    std::free(text);
    throw;
  }
  std::fclose(out);
  const std::string result(text, size);
  std::free(text);
  CHECK(code == 0);
  return result;
}

template <typename Action>
std::string message_of(Action action, ExitCode code) {
  try {
    action();
  } catch (const Error& error) {
    CHECK(error.code() == code);
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return error.what();
  }
  FAIL("no error was thrown");
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
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
  const auto cells = cells_of(report_text(rows, ReportFormat::kCsv));
  CHECK(cells.at(3).at(13) == "0");
}

TEST_CASE("report: the three forms of the table") {
  MadeRun run("a");
  run.add(run.add(point_of("dense", "dense")), {1, 1, 0, 1});
  PointInfo odd = point_of("dense", "quest", kQuest);
  run.add(run.add(odd), {0.5, 1, 0, 0.5});
  odd.model = "a|b\n\"c\", \x1b[31m";
  run.add(odd);
  const auto rows = rows_of({&run});

  const std::string text = report_text(rows, ReportFormat::kText);
  const std::string change = "-0.250 [-0.709, +0.209]";
  INFO(text);
  CHECK(std::count(text.begin(), text.end(), '\n') == 4);
  CHECK(contains(text, "change (95 %, Student's t)"));
  CHECK(contains(text, change));
  CHECK(contains(text, "0.750  [0.301, 0.954] Wilson"));
  CHECK(contains(text, "a|b \"c\",  [31m"));
  for (const char* left_out : {"failed", "dense layers", "all-gather", "prefill s", "trace"})
    CHECK(!contains(text, left_out));
  // Columns stand under their headings.
  const std::string second = text.substr(text.find('\n') + 1);
  CHECK(second.substr(text.find("  task") + 2, 8) == "qa_squad");

  const std::string markdown = report_text(rows, ReportFormat::kMarkdown);
  CHECK(markdown.rfind("| model | task | length |", 0) == 0);
  CHECK(contains(markdown, "\n| --- | --- | ---: |"));
  CHECK(contains(markdown, "| a\\|b \"c\",  [31m | qa_squad | 4096 | 43 | 1x1x1 | dense |"));
  CHECK(contains(markdown, "| " + change + " |"));
  CHECK(!contains(markdown, "failed"));

  const std::string csv = report_text(rows, ReportFormat::kCsv);
  CHECK(contains(csv, "\"a|b\n\"\"c\"\", \x1b[31m\""));
  const auto cells = cells_of(csv);
  REQUIRE(cells.size() == 4);
  for (const auto& line : cells) CHECK(line.size() == cells[0].size());
  std::map<std::string, std::vector<std::string>> columns;
  for (std::size_t c = 0; c < cells[0].size(); ++c)
    for (std::size_t r = 1; r < cells.size(); ++r) columns[cells[0][c]].push_back(cells[r][c]);
  CHECK(columns.at("failed") == std::vector<std::string>{"0", "0", "0"});
  CHECK(columns.at("selected_share") == std::vector<std::string>{"", "", ""});
  CHECK(columns.at("score") == std::vector<std::string>{"", "0.75", "0.5"});
  CHECK(columns.at("score_interval") == std::vector<std::string>{"", "Wilson", "Student's t"});
  CHECK(columns.at("change") == std::vector<std::string>{"", "", "-0.25"});
  CHECK(columns.at("change_pairs") == std::vector<std::string>{"0", "0", "4"});

  // Without a row the headings stay.
  CHECK(report_text({}, ReportFormat::kText).rfind("model  task", 0) == 0);
  CHECK(cells_of(report_text({}, ReportFormat::kCsv)).size() == 1);
}

TEST_CASE("report: journals, traces and merged traces say the same") {
  const TemporaryFolder folder;
  const auto write = [&](const std::string& name, const PointInfo& info, double sparsity) {
    JournalWriter writer(folder.file(name), simple_key(), "{}");
    PointInfo point = info;
    point.dims = {2, 4, 2};
    point.sp = 2;
    writer.add_point(point);
    std::vector<AttemptRank> ranks(2);
    ranks[1].world_rank = ranks[1].sp = 1;
    writer.append_attempt(ranks);
    for (int i = 0; i < 3; ++i) {
      SampleRecord sample = sample_of(0, i, i == 0 ? 1 : 0.5 - sparsity / 2);
      sample.prefill_sparsity = sparsity;
      for (int r = 0; r < 2; ++r) {
        RankTimes rank;
        rank.world_rank = r;
        rank.bytes_full = {1000, 2000};
        rank.bytes_needed = rank.bytes_selected = {100, 500};
        rank.bytes_selecting = {10, 20};
        sample.ranks.push_back(rank);
      }
      writer.append_sample(sample);
    }
    writer.append_end("done");
    write_trace(read_journal(journal_path_of(folder.file(name))), folder.file(name));
  };
  write("dense.h5", point_of("dense", "dense"), 0);
  write("slash.h5", point_of("vertical_slash", "dense", kSlash), 0.5);

  const std::string dense = folder.file("dense.h5"), slash = folder.file("slash.h5");
  CHECK(printed({{slash}, "text"}) == printed({{slash + ".journal"}, "text"}));
  const auto cells = cells_of(printed({{slash, dense + ".journal"}, "csv"}));
  REQUIRE(cells.size() == 3);
  CHECK(cells[1][0] == dense + ".journal");
  CHECK(cells[2][0] == slash);

  std::FILE* no_output = std::fopen("/dev/null", "w");
  REQUIRE(no_output != nullptr);
  REQUIRE(run_trace_merge(folder.file("all.h5"), {slash, dense}, no_output) == 0);
  std::fclose(no_output);
  const auto merged = cells_of(printed({{folder.file("all.h5")}, "csv"}));
  REQUIRE(merged.size() == 3);
  for (std::size_t row = 1; row < 3; ++row) {
    for (std::size_t c = 2; c < cells[0].size(); ++c) CHECK(merged[row][c] == cells[row][c]);
  }
  std::map<std::string, std::string> sparse;
  for (std::size_t c = 0; c < merged[0].size(); ++c) sparse[merged[0][c]] = merged[2][c];
  CHECK(sparse.at("point") == "0");
  CHECK(std::stod(sparse.at("change")) == doctest::Approx(-0.5 / 3));
  CHECK(std::stod(sparse.at("selected_share")) == doctest::Approx(600.0 / 3000));
  CHECK(std::stod(sparse.at("selecting_share")) == doctest::Approx(30.0 / 3000));

  SUBCASE("one run twice is refused") {
    const std::string message = message_of(
        [&] {
          printed({{dense, dense + ".journal"}, "csv"});
        },
        ExitCode::kUsage);
    CHECK(contains(message, dense + ".journal"));
  }
  SUBCASE("bad files are refused") {
    write_file(folder.file("notes.txt"), "not a trace\n");
    CHECK(contains(message_of(
                       [&] {
                         printed({{folder.file("notes.txt")}, "text"});
                       },
                       ExitCode::kInput),
                   "notes.txt: line 1: not a Tessera journal"));
    CHECK(contains(message_of(
                       [&] {
                         printed({{folder.file("none.h5")}, "text"});
                       },
                       ExitCode::kInput),
                   "none.h5: cannot open"));
    std::string cut = read_file(dense);
    write_file(folder.file("cut.h5"), cut.substr(0, cut.size() / 2));
    CHECK(contains(message_of(
                       [&] {
                         printed({{folder.file("cut.h5")}, "text"});
                       },
                       ExitCode::kInput),
                   "cut.h5"));
    CHECK(contains(message_of([&] { printed({{dense}, "html"}); }, ExitCode::kUsage), "html"));
  }
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
