#include "io/trace_writer.hpp"

#include <hdf5_hl.h>

#include <algorithm>
#include <numeric>

#include "io/file_output.hpp"
#include "io/trace_arrays_writer.hpp"
#include "io/trace_layout.hpp"
#include "io/trace_reader.hpp"
#include "runtime/core/error.hpp"

namespace tessera {

namespace {

Hdf5Type column_type(const std::string&) {
  return Hdf5Type::kText;
}
Hdf5Type column_type(std::int64_t) {
  return Hdf5Type::kInt64;
}
Hdf5Type column_type(double) {
  return Hdf5Type::kFloat64;
}
Hdf5Type column_type(bool) {
  return Hdf5Type::kUint8;
}

void write_values(hid_t dataset, const std::vector<std::string>& values, const char* name) {
  write_all_text(dataset, values, name);
}
template <typename T>
void write_values(hid_t dataset, const std::vector<T>& values, const char* name) {
  if (!values.empty()) write_all(dataset, column_type(T()), values.data(), name);
}
void write_values(hid_t dataset, const std::vector<bool>& values, const char* name) {
  const std::vector<std::uint8_t> bytes(values.begin(), values.end());
  if (!bytes.empty()) write_all(dataset, Hdf5Type::kUint8, bytes.data(), name);
  set_bytes_attribute(dataset, "flag_values", {0, 1});
  set_text_attribute(dataset, "flag_meanings", "false true");
}

// One 1-D dataset a column, over a scale that numbers the rows. `order`: records in the order of their rows.
template <typename Record>
void write_table(hid_t file, const TableLayout& layout, const std::vector<Record>& records,
                 const std::vector<std::size_t>& order) {
  const Hdf5Id group = create_group(file, layout.group);
  std::vector<std::int64_t> numbers(order.size());
  std::iota(numbers.begin(), numbers.end(), 0);
  const Hdf5Id scale = write_scale(group.get(), layout.scale, numbers, layout.long_name);
  for (const auto& column : columns_of<Record>()) {
    std::visit(
        [&](auto member) {
          using Value = std::decay_t<decltype(records[0].*member)>;
          std::vector<Value> values;
          values.reserve(order.size());
          for (std::size_t i : order) values.push_back(records[i].*member);
          const Hdf5Id dataset =
              create_dataset(group.get(), column.name, column_type(Value()), {order.size()}, {});
          write_values(dataset.get(), values, column.name);
          describe_dataset(dataset.get(), column.units, column.long_name);
          attach_scale(dataset.get(), scale.get(), 0, column.name);
        },
        column.member);
  }
}

std::vector<std::size_t> natural_order(std::size_t count) {
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  return order;
}

std::vector<std::size_t> order_of_samples(const std::vector<SampleRecord>& samples) {
  auto order = natural_order(samples.size());
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::pair(samples[a].point, samples[a].sample) < std::pair(samples[b].point, samples[b].sample);
  });
  return order;
}

void write_root(hid_t file, const TraceTables& tables) {
  set_text_attribute(file, "Conventions", "CF-1.8");
  set_text_attribute(file, "schema_name", kTraceSchemaName);
  set_integer_attribute(file, "schema_version", {kTraceSchemaVersion});
  set_text_attribute(file, "run_id", tables.run_id);
  set_text_attribute(file, "title", tables.title);
  set_text_attribute(file, "source", tables.source);
  set_text_attribute(file, "history", tables.history);
  set_text_attribute(file, "date_created", tables.created);
  set_bytes_attribute(file, "complete", {static_cast<std::uint8_t>(tables.complete ? 1 : 0)});
}

void build_trace(hid_t file, const TraceTables& tables, const LoadSample& load) {
  write_root(file, tables);
  const auto order = order_of_samples(tables.samples);
  write_table(file, kPointTable, tables.points, natural_order(tables.points.size()));
  write_table(file, kAttemptTable, tables.attempts, natural_order(tables.attempts.size()));
  write_table(file, kSampleTable, tables.samples, order);
  const Hdf5Id arrays = create_group(file, "arrays");
  for (std::size_t point = 0, next = 0; point < tables.points.size(); ++point) {
    std::vector<std::size_t> samples;
    while (next < order.size() && tables.samples[order[next]].point == static_cast<std::int64_t>(point)) {
      samples.push_back(order[next++]);
    }
    write_point_arrays(file, tables, point, samples, load);
  }
}

// What was written must read back as a trace of the same rows; everything else of it is trace check's.
void verify_written(const std::string& private_path, const std::string& trace_path,
                    const TraceTables& tables) {
  try {
    const TraceTables written = read_trace(private_path);
    if (written.points.size() != tables.points.size() || written.attempts.size() != tables.attempts.size() ||
        written.samples.size() != tables.samples.size() || written.run_id != tables.run_id) {
      throw ResourceError("{}: wrote {} samples, but {} read back; check the disk, then run again",
                          trace_path, tables.samples.size(), written.samples.size());
    }
  } catch (const InputError& error) {
    throw ResourceError("{}: what was written does not read back ({}); check the disk, then run again",
                        trace_path, error.what());
  }
}

std::string history_of(const std::vector<AttemptRank>& attempts) {
  std::string history;
  for (const auto& row : attempts) {
    if (row.world_rank != 0) continue;
    history += fmt::format("{}{}: {}", history.empty() ? "" : "\n", row.date, row.command_line);
  }
  return history;
}

}  // namespace

void write_trace(const TraceTables& tables, const LoadSample& load, const std::string& trace_path,
                 const std::function<void()>& before_rename) {
  const Hdf5Quiet quiet;
  try {
    Hdf5Image image;
    build_trace(image.file(), tables, load);
    replace_file(
        trace_path, image.close(),
        [&](const std::string& private_path) { verify_written(private_path, trace_path, tables); },
        before_rename);
  } catch (const Hdf5Failure& failure) {
    throw ResourceError("{}: HDF5 could not build the trace: {}", trace_path, failure.what());
  }
}

void write_trace(const JournalContents& contents, const std::string& trace_path,
                 const std::function<void()>& before_rename) {
  TraceTables tables = contents;
  if (!tables.points.empty()) {
    const PointInfo& first = tables.points.front();
    tables.title = fmt::format("{}: {} at {} tokens, {} points", first.model, first.task, first.length,
                               tables.points.size());
  }
  tables.source = "tessera";
  if (!tables.attempts.empty()) {
    const AttemptRank& last = tables.attempts.back();
    tables.source =
        fmt::format("tessera {} ({}{})", last.version, last.git_revision, last.git_dirty ? ", changed" : "");
  }
  tables.history = history_of(tables.attempts);
  write_trace(tables, journal_loader(contents), trace_path, before_rename);
}

}  // namespace tessera
