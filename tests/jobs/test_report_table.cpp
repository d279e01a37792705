// The table of `tessera report` in its three forms, from rows and from files.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "io/trace_writer.hpp"
#include "jobs/report_table.hpp"
#include "jobs/trace_command.hpp"
#include "tests/io/trace_samples.hpp"
#include "tests/jobs/report_runs.hpp"

using namespace tessera;
using namespace tessera::test;

namespace {

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
  return test::printed([&](std::FILE* out) { return run_report(options, out); });
}

}  // namespace

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
  CHECK(std::count(text.begin(), text.end(), '\n') == 5);
  CHECK(text.rfind("length 4096, seed 43, tp x sp x dp 1x1x1\nmodel ", 0) == 0);  // models and samples differ
  CHECK(contains(text, "change (95 %, Student's t)"));
  CHECK(contains(text, change));
  CHECK(contains(text, "0.750  [0.301, 0.954] Wilson"));
  CHECK(contains(text, "a|b \"c\",  [31m"));
  for (const char* left_out : {"failed", "dense layers", "all-gather", "prefill s", "trace"})
    CHECK(!contains(text, left_out));
  // Columns stand under their headings.
  const std::string table = text.substr(text.find('\n') + 1);
  const std::string second = table.substr(table.find('\n') + 1);
  CHECK(second.substr(table.find("  task") + 2, 8) == "qa_squad");

  const std::string markdown = report_text(rows, ReportFormat::kMarkdown);
  CHECK(markdown.rfind("length 4096, seed 43, tp x sp x dp 1x1x1\n\n| model | task | prefill |", 0) == 0);
  CHECK(contains(markdown, "\n| --- | --- | --- |"));
  CHECK(contains(markdown, "| a\\|b \"c\",  [31m | qa_squad | dense |"));
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
  CHECK(columns.at("samples") == std::vector<std::string>{"0", "4", "4"});
  CHECK(columns.at("selected_share") == std::vector<std::string>{"", "", ""});
  CHECK(columns.at("score") == std::vector<std::string>{"", "0.75", "0.5"});
  CHECK(columns.at("score_interval") == std::vector<std::string>{"", "Wilson", "Student's t"});
  CHECK(columns.at("change") == std::vector<std::string>{"", "", "-0.25"});
  CHECK(columns.at("change_pairs") == std::vector<std::string>{"0", "0", "4"});

  // One row leads nothing, and without a row the headings stay.
  CHECK(report_text(std::span(rows).first(1), ReportFormat::kText).rfind("model ", 0) == 0);
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
