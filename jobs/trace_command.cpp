#include "jobs/trace_command.hpp"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "io/journal.hpp"
#include "io/trace_check.hpp"
#include "io/trace_writer.hpp"
#include "jobs/text_output.hpp"
#include "jobs/trace_source.hpp"
#include "runtime/core/error.hpp"

namespace tessera {

namespace {

constexpr std::string_view kJournalEnding = ".journal";

std::string counts_of(const TraceTables& tables) {
  return fmt::format("run {}, {} points, {} attempts' ranks, {} samples{}", tables.run_id,
                     tables.points.size(), tables.attempts.size(), tables.samples.size(),
                     tables.complete ? ", complete" : "");
}

// ---- export ------------------------------------------------------------------------------------

std::string csv_value(const std::string& value) {
  return csv_field(value);
}
std::string csv_value(std::int64_t value) {
  return std::to_string(value);
}
std::string csv_value(bool value) {
  return value ? "1" : "0";
}
std::string csv_value(double value) {
  return std::isnan(value) ? "" : fmt::format("{}", value);
}

// `number`: a first column of that name with the number of the row, or null.
template <typename Record>
void export_csv(const std::vector<Record>& records, const char* number, std::FILE* out) {
  std::string line = number != nullptr ? number : "";
  for (const auto& column : columns_of<Record>())
    line += fmt::format("{}{}", line.empty() ? "" : ",", column.name);
  print_text(out, line + "\n");
  for (std::size_t i = 0; i < records.size(); ++i) {
    line = number != nullptr ? std::to_string(i) : "";
    bool first = number == nullptr;
    for (const auto& column : columns_of<Record>()) {
      if (!first) line += ',';
      first = false;
      line += std::visit([&](auto member) { return csv_value(records[i].*member); }, column.member);
    }
    print_text(out, line + "\n");
  }
}

template <typename Record>
void export_jsonl(const std::vector<Record>& records, const char* number, std::FILE* out) {
  for (std::size_t i = 0; i < records.size(); ++i) {
    nlohmann::ordered_json row;
    if (number != nullptr) row[number] = i;
    for (const auto& column : columns_of<Record>()) {
      std::visit([&](auto member) { row[column.name] = records[i].*member; }, column.member);
    }
    print_text(out, row.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  }
}

template <typename Record>
void export_table(const std::vector<Record>& records, const char* number, const std::string& format,
                  std::FILE* out) {
  if (format == "csv") return export_csv(records, number, out);
  if (format == "jsonl") return export_jsonl(records, number, out);
  throw UsageError("--format: found {}, expected csv or jsonl", format);
}

}  // namespace

int run_trace_check(const std::string& path, std::FILE* out) {
  const auto source = open_source(path);
  check_values(source->tables(), source->load, path);
  print_text(out, fmt::format("{}: {}\n", path, counts_of(source->tables())));
  if (!source->is_trace) {
    if (source->journal.torn_tail) {
      print_text(
          out, fmt::format("{}: its last line is incomplete; resuming or rebuilding leaves it out\n", path));
    }
    flush_text(out);
    return 0;
  }
  const std::string journal_path = journal_path_of(path);
  if (::access(journal_path.c_str(), F_OK) == 0) {
    const JournalContents journal = read_journal(journal_path);
    const std::size_t missing = check_against_journal(source->trace, journal, path);
    print_text(out,
               missing == 0
                   ? fmt::format("{}: agrees\n", journal_path)
                   : fmt::format("{}: agrees, and has {} samples more; tessera trace rebuild adds them\n",
                                 journal_path, missing));
  }
  flush_text(out);
  return 0;
}

int run_trace_rebuild(const std::string& path, std::FILE* out) {
  const bool is_journal = path.size() > kJournalEnding.size() &&
                          path.compare(path.size() - kJournalEnding.size(), path.npos, kJournalEnding) == 0;
  const std::string trace_path = is_journal ? path.substr(0, path.size() - kJournalEnding.size()) : path;
  const JournalContents journal = read_journal(journal_path_of(trace_path));
  if (journal.next_seq == 0)
    throw InputError("{}: line 1: incomplete; there is no run to rebuild", journal.path);
  write_trace(journal, trace_path);
  print_text(out, fmt::format("{}: {}\n", trace_path, counts_of(journal)));
  flush_text(out);
  return 0;
}

int run_trace_export(const TraceExport& options, std::FILE* out) {
  if (options.format != "csv" && options.format != "jsonl") {
    throw UsageError("--format: found {}, expected csv or jsonl", options.format);
  }
  const auto source = open_source(options.path);
  const TraceTables& tables = source->tables();
  if (options.table == "samples") {
    export_table(tables.samples, nullptr, options.format, out);
  } else if (options.table == "points") {
    export_table(tables.points, "point", options.format, out);
  } else if (options.table == "attempts") {
    export_table(tables.attempts, nullptr, options.format, out);
  } else {
    throw UsageError("--table: found {}, expected samples, points or attempts", options.table);
  }
  flush_text(out);
  return 0;
}

int run_trace_merge(const std::string& output, const std::vector<std::string>& inputs, std::FILE* out) {
  if (inputs.empty())
    throw UsageError("trace merge: found no inputs, expected at least one trace or journal");
  std::error_code ignored;
  for (const auto& input : inputs) {
    if (std::filesystem::equivalent(output, input, ignored)) {
      throw UsageError("trace merge: {} is both output and input; choose another output", output);
    }
  }
  std::vector<std::unique_ptr<TraceSource>> sources;
  std::vector<std::pair<std::size_t, std::size_t>> origin;  // of each merged sample: source, index
  TraceTables merged;
  merged.complete = true;
  merged.created = iso_time(epoch_now());
  std::int64_t attempts = 0;
  for (const auto& input : inputs) {
    sources.push_back(open_source(input));
    const TraceTables& part = sources.back()->tables();
    const auto first_point = static_cast<std::int64_t>(merged.points.size());
    const std::int64_t first_attempt = attempts;
    merged.points.insert(merged.points.end(), part.points.begin(), part.points.end());
    for (AttemptRank row : part.attempts) {
      row.attempt += first_attempt;
      attempts = std::max(attempts, row.attempt + 1);
      merged.attempts.push_back(std::move(row));
    }
    for (std::size_t i = 0; i < part.samples.size(); ++i) {
      merged.samples.push_back(part.samples[i]);
      merged.samples.back().point += first_point;
      merged.samples.back().attempt += first_attempt;
      origin.emplace_back(sources.size() - 1, i);
    }
    merged.complete = merged.complete && part.complete;
    merged.run_id += fmt::format("{}{}", merged.run_id.empty() ? "" : " ", part.run_id);
    merged.history += fmt::format("{}{}: merged {} (run {})", merged.history.empty() ? "" : "\n",
                                  merged.created, input, part.run_id);
  }
  merged.title = fmt::format("{} traces merged, {} points", inputs.size(), merged.points.size());
  merged.source = fmt::format("tessera trace merge of runs {}", merged.run_id);
  const LoadSample load = [&](std::size_t i) {
    SampleRecord sample = sources[origin[i].first]->load(origin[i].second);
    sample.point = merged.samples[i].point;
    sample.attempt = merged.samples[i].attempt;
    return sample;
  };
  write_trace(merged, load, output);
  print_text(out, fmt::format("{}: {}\n", output, counts_of(merged)));
  flush_text(out);
  return 0;
}

}  // namespace tessera
