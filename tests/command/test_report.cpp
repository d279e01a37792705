// `tessera report` on runs that the command made: what it prints is what their traces hold.
#include <doctest/doctest.h>

#include <map>
#include <string>
#include <vector>

#include "io/trace_reader.hpp"
#include "tests/command/model_copy.hpp"
#include "tests/command/refusal.hpp"
#include "tests/command/run_command.hpp"

namespace tessera::test {
namespace {

constexpr int kSamples = 3;

void evaluate(const std::string& trace, const Words& method) {
  const Words words =
      with(eval(std::string(TESSERA_FIXTURES) + "/" + kQwen, trace), "--samples", std::to_string(kSamples)) +
      Words{"--sp", "2"} + method;
  const CommandResult result = run_command(tessera_on(2, words));
  CAPTURE(result.err);
  REQUIRE(result.code == 0);
}

std::string report(const Words& words) {
  const CommandResult result = run_command(tessera(Words{"report"} + words));
  CAPTURE(result.err);
  CHECK(result.err == "");
  REQUIRE(result.code == 0);
  return result.out;
}

std::vector<std::string> split(const std::string& line, char separator) {
  std::vector<std::string> parts(1);
  for (const char c : line) {
    if (c == separator) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

// Each row of a CSV without quotes by its headings.
std::vector<std::map<std::string, std::string>> rows_of(const std::string& csv) {
  REQUIRE(csv.find('"') == std::string::npos);
  std::vector<std::map<std::string, std::string>> rows;
  const std::vector<std::string> lines = lines_of(csv);
  const std::vector<std::string> headings = split(lines.at(0), ',');
  for (std::size_t i = 1; i < lines.size(); ++i) {
    const std::vector<std::string> cells = split(lines[i], ',');
    REQUIRE(cells.size() == headings.size());
    std::map<std::string, std::string>& row = rows.emplace_back();
    for (std::size_t c = 0; c < cells.size(); ++c) row[headings[c]] = cells[c];
  }
  return rows;
}

void check_row(const std::map<std::string, std::string>& row, const std::string& trace) {
  CAPTURE(trace);
  const TraceTables tables = read_trace(trace);
  const LoadSample load = trace_loader(tables, trace);
  double prefill_s = 0, prefill = 0, decode = 0, selected = 0, needed = 0, selecting = 0, full = 0;
  int without_form = 0;
  REQUIRE(tables.samples.size() == kSamples);
  for (std::size_t i = 0; i < kSamples; ++i) {
    const SampleRecord sample = load(i);
    prefill_s += sample.prefill_s / kSamples;
    prefill += sample.prefill_sparsity / kSamples;
    decode += sample.decode_sparsity / kSamples;
    without_form += !sample.format_ok;
    CHECK(sample.ranks.size() == 2);
    for (const RankTimes& rank : sample.ranks) {
      for (std::size_t layer = 0; layer < rank.bytes_full.size(); ++layer) {
        selected += static_cast<double>(rank.bytes_selected[layer]);
        needed += static_cast<double>(rank.bytes_needed[layer]);
        selecting += static_cast<double>(rank.bytes_selecting[layer]);
        full += static_cast<double>(rank.bytes_full[layer]);
      }
    }
  }
  REQUIRE(full > 0);
  CHECK(row.at("trace") == trace);
  CHECK(row.at("task") == "ruler_niah");
  CHECK(row.at("length") == "1800");
  CHECK(row.at("sp") == "2");
  CHECK(row.at("samples") == std::to_string(kSamples));
  CHECK(row.at("format_errors") == std::to_string(without_form));
  CHECK(std::stod(row.at("prefill_s")) == doctest::Approx(prefill_s));
  CHECK(std::stod(row.at("prefill_sparsity")) == doctest::Approx(prefill));
  CHECK(std::stod(row.at("decode_sparsity")) == doctest::Approx(decode));
  CHECK(std::stod(row.at("selected_share")) == doctest::Approx(selected / full));
  CHECK(std::stod(row.at("needed_share")) == doctest::Approx(needed / full));
  CHECK(std::stod(row.at("selecting_share")) == doctest::Approx(selecting / full));
}

}  // namespace

TEST_CASE("report on a dense and a sparse run of 2 ranks") {
  const TempFolder folder;
  const std::string dense = folder / "dense.h5", sparse = folder / "sparse.h5";
  evaluate(dense, {});
  evaluate(sparse, {"--prefill", "vertical_slash", "--set", "vertical_slash.columns=32", "--set",
                    "vertical_slash.diagonals=64", "--decode", "quest", "--set", "quest.tokens=256"});

  const auto rows = rows_of(report({sparse, dense, "--format", "csv"}));
  REQUIRE(rows.size() == 2);
  check_row(rows[0], dense);
  check_row(rows[1], sparse);
  CHECK(rows[0].at("prefill") == "dense");
  CHECK(rows[0].at("change") == "");
  CHECK(std::stod(rows[0].at("prefill_sparsity")) == 0);
  CHECK(rows[1].at("prefill") == "vertical_slash columns=32 diagonals=64");
  CHECK(rows[1].at("decode") == "quest tokens=256");
  CHECK(rows[1].at("change_pairs") == std::to_string(kSamples));
  CHECK(std::stod(rows[1].at("change")) ==
        doctest::Approx(std::stod(rows[1].at("score")) - std::stod(rows[0].at("score"))));
  CHECK(std::stod(rows[1].at("prefill_sparsity")) > 0.5);
  CHECK(std::stod(rows[1].at("selected_share")) < std::stod(rows[0].at("selected_share")));

  const std::string text = report({"--format", "text", dense, sparse});
  CHECK(text == report({dense, sparse}));
  const std::vector<std::string> lines = lines_of(text);
  REQUIRE(lines.size() == 4);
  CHECK(lines[0].rfind("model ", 0) == 0);
  CHECK(lines[0].find(", length ") != std::string::npos);
  for (const char* heading : {"task", "prefill sparsity", "needed / all-gather", "change (95 %"}) {
    CAPTURE(heading);
    CHECK(lines[1].find(heading) != std::string::npos);
  }
  CHECK(lines[1].find("failed") == std::string::npos);
  CHECK(lines[3].find("vertical_slash columns=32 diagonals=64  quest tokens=256") != std::string::npos);

  const std::vector<std::string> markdown = lines_of(report({dense, sparse, "--format", "markdown"}));
  REQUIRE(markdown.size() == 5);  // what all share, then the table
  CHECK(markdown[2].rfind("| --- |", 0) == 0);
  for (std::size_t i = 1; i < markdown.size(); ++i) {
    CHECK(split(markdown[i], '|').size() == split(markdown[1], '|').size());
  }

  // A journal is as good, and runs that were merged are as good as apart.
  const auto from_journal = rows_of(report({sparse + ".journal", "--format", "csv"}));
  const std::string all = folder / "all.h5";
  REQUIRE(run_command(tessera({"trace", "merge", "--output", all, sparse, dense})).code == 0);
  const auto merged = rows_of(report({all, "--format", "csv"}));
  REQUIRE(from_journal.size() == 1);
  REQUIRE(merged.size() == 2);
  for (const auto& [column, cell] : rows[1]) {
    CAPTURE(column);
    if (column == "trace" || column == "point") continue;
    CHECK(merged[1].at(column) == cell);
    if (column.rfind("change", 0) != 0) CHECK(from_journal[0].at(column) == cell);
  }

  check_refused(run_command(tessera({"report", folder / "none.h5"})), 3, {"none.h5"});
  write_file(folder / "notes.h5", "not a trace\n");
  check_refused(run_command(tessera({"report", dense, folder / "notes.h5"})), 3, {"notes.h5", "line 1"});
  check_refused(run_command(tessera({"report", dense, dense + ".journal"})), 2, {"dense.h5.journal", "run"});
  check_refused(run_command(tessera({"report"})), 2, {"FILE"});
  check_refused(run_command(tessera({"report", dense, "--format", "html"})), 2, {"--format", "html"});
}

}  // namespace tessera::test
