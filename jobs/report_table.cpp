#include "jobs/report_table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "io/utf8.hpp"
#include "jobs/text_output.hpp"
#include "runtime/core/error.hpp"

namespace tessera {
namespace {

using Row = ReportRow;

struct Column {
  const char* name;
  std::string (*cell)(const Row&);
  bool is_number = false;  // stands to the right
  bool may_lead = false;   // said once above the table where it is the same in all of several rows
};

// ---- csv ---------------------------------------------------------------------------------------

std::string exact(double value) {
  return std::isnan(value) ? "" : fmt::format("{}", value);
}

std::string exact(std::int64_t value) {
  return std::to_string(value);
}

constexpr Column kCsvColumns[] = {
    {"trace", [](const Row& r) { return r.path; }},
    {"point", [](const Row& r) { return exact(r.point); }},
    {"model", [](const Row& r) { return r.info.model; }},
    {"task", [](const Row& r) { return r.info.task; }},
    {"length", [](const Row& r) { return exact(r.info.length); }},
    {"seed", [](const Row& r) { return exact(r.info.seed); }},
    {"tp", [](const Row& r) { return exact(r.info.tp); }},
    {"sp", [](const Row& r) { return exact(r.info.sp); }},
    {"dp", [](const Row& r) { return exact(r.info.dp); }},
    {"prefill", [](const Row& r) { return r.prefill; }},
    {"decode", [](const Row& r) { return r.decode; }},
    {"dense_layers", [](const Row& r) { return r.dense_layers; }},
    {"share_group", [](const Row& r) { return std::string(r.share_group ? "1" : "0"); }},
    {"samples", [](const Row& r) { return exact(r.samples); }},
    {"failed", [](const Row& r) { return exact(r.failed); }},
    {"metric", [](const Row& r) { return r.metric; }},
    {"score", [](const Row& r) { return exact(r.score.mean); }},
    {"score_low", [](const Row& r) { return exact(r.score.low); }},
    {"score_high", [](const Row& r) { return exact(r.score.high); }},
    {"score_interval", [](const Row& r) { return std::string(r.score.method); }},
    {"change", [](const Row& r) { return exact(r.change.mean); }},
    {"change_low", [](const Row& r) { return exact(r.change.low); }},
    {"change_high", [](const Row& r) { return exact(r.change.high); }},
    {"change_interval", [](const Row& r) { return std::string(r.change.method); }},
    {"change_pairs", [](const Row& r) { return exact(r.change.count); }},
    {"format_errors", [](const Row& r) { return exact(r.format_errors); }},
    {"prefill_sparsity", [](const Row& r) { return exact(r.prefill_sparsity); }},
    {"decode_sparsity", [](const Row& r) { return exact(r.decode_sparsity); }},
    {"prefill_s", [](const Row& r) { return exact(r.prefill_s); }},
    {"tpot_s", [](const Row& r) { return exact(r.tpot_s); }},
    {"selected_share", [](const Row& r) { return exact(r.selected_share); }},
    {"needed_share", [](const Row& r) { return exact(r.needed_share); }},
    {"selecting_share", [](const Row& r) { return exact(r.selecting_share); }},
};

// ---- text and markdown -------------------------------------------------------------------------

std::string share(double value) {
  return std::isnan(value) ? "" : fmt::format("{:.3f}", value);
}

// At least three digits.
std::string three_digits(double value) {
  if (std::isnan(value)) return "";
  if (value >= 100) return fmt::format("{:.0f}", value);
  if (value >= 10) return fmt::format("{:.1f}", value);
  if (value >= 1) return fmt::format("{:.2f}", value);
  return fmt::format("{:#.3g}", value);
}

std::string bracketed(const MeanInterval& interval, const char* number) {
  if (interval.method.empty()) return "";
  return fmt::format("[{}, {}]", fmt::format(fmt::runtime(number), interval.low),
                     fmt::format(fmt::runtime(number), interval.high));
}

std::string score_interval(const Row& row) {
  const std::string text = bracketed(row.score, "{:.3f}");
  return text.empty() ? "" : fmt::format("{} {}", text, row.score.method);
}

std::string change(const Row& row) {
  if (row.change.count == 0) return "";
  std::string text = fmt::format("{:+.3f}", row.change.mean);
  if (!row.change.method.empty()) text += " " + bracketed(row.change, "{:+.3f}");
  if (row.change.count < row.samples) text += fmt::format(" of {}", row.change.count);
  return text;
}

constexpr Column kShownColumns[] = {
    {"model", [](const Row& r) { return r.info.model; }, false, true},
    {"task", [](const Row& r) { return r.info.task; }},
    {"length", [](const Row& r) { return exact(r.info.length); }, true, true},
    {"seed", [](const Row& r) { return exact(r.info.seed); }, true, true},
    {"tp x sp x dp", [](const Row& r) { return fmt::format("{}x{}x{}", r.info.tp, r.info.sp, r.info.dp); },
     false, true},
    {"prefill", [](const Row& r) { return r.prefill; }},
    {"decode", [](const Row& r) { return r.decode; }},
    {"dense layers", [](const Row& r) { return r.dense_layers; }},
    {"shared group", [](const Row& r) { return std::string(r.share_group ? "yes" : ""); }},
    {"samples", [](const Row& r) { return exact(r.samples); }, true, true},
    {"failed", [](const Row& r) { return r.failed > 0 ? exact(r.failed) : ""; }, true},
    {"metric", [](const Row& r) { return r.metric; }},
    {"score", [](const Row& r) { return share(r.score.mean); }, true},
    {"95 % interval", score_interval},
    {"change (95 %, Student's t)", change},
    {"without form", [](const Row& r) { return r.samples > 0 ? exact(r.format_errors) : ""; }, true},
    {"prefill sparsity", [](const Row& r) { return share(r.prefill_sparsity); }, true},
    {"decode sparsity", [](const Row& r) { return share(r.decode_sparsity); }, true},
    {"prefill s", [](const Row& r) { return three_digits(r.prefill_s); }, true},
    {"ms per token", [](const Row& r) { return three_digits(1000 * r.tpot_s); }, true},
    {"received / all-gather", [](const Row& r) { return share(r.selected_share); }, true},
    {"needed / all-gather", [](const Row& r) { return share(r.needed_share); }, true},
    {"selecting / all-gather", [](const Row& r) { return share(r.selecting_share); }, true},
};
constexpr Column kPathColumn = {"trace", [](const Row& r) { return r.path; }};

struct ShownColumn {
  std::string heading;
  bool is_number = false;
  std::vector<std::string> cells;
};

// A trace holds what it likes: control characters would break the table, or the terminal.
std::string one_line(const std::string& text) {
  std::string line = repair_utf8(text);
  std::replace_if(
      line.begin(), line.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; }, ' ');
  return line;
}

struct ShownTable {
  std::string lead;  // "model mini-m, length 4096", or ""
  std::vector<ShownColumn> columns;
};

ShownTable shown_table(std::span<const Row> rows) {
  std::vector<Column> columns(std::begin(kShownColumns), std::end(kShownColumns));
  const auto other_trace = [&](const Row& row) { return row.path != rows.front().path; };
  if (std::any_of(rows.begin(), rows.end(), other_trace)) columns.push_back(kPathColumn);

  ShownTable shown;
  for (const Column& column : columns) {
    ShownColumn made{column.name, column.is_number, {}};
    for (const Row& row : rows) made.cells.push_back(one_line(column.cell(row)));
    const bool is_empty = std::all_of(made.cells.begin(), made.cells.end(),
                                      [](const std::string& cell) { return cell.empty(); });
    if (is_empty && !rows.empty()) continue;
    const bool is_same = rows.size() > 1 && std::count(made.cells.begin(), made.cells.end(),
                                                       made.cells.front()) == std::ssize(made.cells);
    if (column.may_lead && is_same) {
      shown.lead += fmt::format("{}{} {}", shown.lead.empty() ? "" : ", ", made.heading, made.cells.front());
    } else {
      shown.columns.push_back(std::move(made));
    }
  }
  return shown;
}

// In characters, which is what a terminal counts for the scripts that models and tasks are named in.
std::size_t width_of(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::size_t width_of(const ShownColumn& column) {
  std::size_t width = width_of(column.heading);
  for (const std::string& cell : column.cells) width = std::max(width, width_of(cell));
  return width;
}

std::string text_table(std::span<const Row> rows) {
  const auto [lead, columns] = shown_table(rows);
  std::vector<std::string> lines(rows.size() + 1);  // the headings first
  for (const ShownColumn& column : columns) {
    const std::size_t width = width_of(column);
    for (std::size_t i = 0; i < lines.size(); ++i) {
      const std::string& cell = i == 0 ? column.heading : column.cells[i - 1];
      const std::string padding(width - width_of(cell), ' ');
      if (!lines[i].empty()) lines[i] += "  ";
      lines[i] += column.is_number ? padding + cell : cell + padding;
    }
  }
  std::string text = lead.empty() ? "" : lead + "\n";
  for (const std::string& line : lines) text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  return text;
}

std::string markdown_cell(const std::string& text) {
  std::string cell;
  for (const char c : text) {
    if (c == '|' || c == '\\') cell += '\\';
    cell += c;
  }
  return cell;
}

std::string markdown_table(std::span<const Row> rows) {
  const auto [lead, columns] = shown_table(rows);
  std::string text = "|", rule = "|";
  for (const ShownColumn& column : columns) {
    text += fmt::format(" {} |", column.heading);
    rule += column.is_number ? " ---: |" : " --- |";
  }
  text += "\n" + rule + "\n";
  for (std::size_t i = 0; i < rows.size(); ++i) {
    text += "|";
    for (const ShownColumn& column : columns) text += fmt::format(" {} |", markdown_cell(column.cells[i]));
    text += "\n";
  }
  return lead.empty() ? text : lead + "\n\n" + text;
}

std::string csv_table(std::span<const Row> rows) {
  std::string text;
  for (const Column& column : kCsvColumns) text += fmt::format("{}{}", text.empty() ? "" : ",", column.name);
  text += "\n";
  for (const Row& row : rows) {
    for (const Column& column : kCsvColumns) {
      if (&column != kCsvColumns) text += ",";
      text += csv_field(column.cell(row));
    }
    text += "\n";
  }
  return text;
}

}  // namespace

ReportFormat parse_report_format(std::string_view name) {
  if (name == "text") return ReportFormat::kText;
  if (name == "markdown") return ReportFormat::kMarkdown;
  if (name == "csv") return ReportFormat::kCsv;
  throw UsageError("--format: found {}, expected text, markdown or csv", name);
}

std::string report_text(std::span<const ReportRow> rows, ReportFormat format) {
  switch (format) {
    case ReportFormat::kText:
      return text_table(rows);
    case ReportFormat::kMarkdown:
      return markdown_table(rows);
    case ReportFormat::kCsv:
      return csv_table(rows);
  }
  throw InternalError("internal error: a format of the report is not handled");
}

}  // namespace tessera
