#include "jobs/trace_options.hpp"

namespace tessera {

OptionSet trace_options(TraceOptions& o) {
  switch (o.action) {
    case TraceOptions::Action::kCheck: {
      OptionSet set("trace check", "Reads traces whole and reports what is wrong with them (exit 3).",
                    "tessera trace check out.h5");
      set.files("files", &o.files, "traces to check");
      return set;
    }
    case TraceOptions::Action::kRebuild: {
      OptionSet set("trace rebuild", "Makes a trace again from its journal.", "tessera trace rebuild out.h5");
      set.file("file", &o.files, "the trace, or its journal (FILE.h5.journal)");
      return set;
    }
    case TraceOptions::Action::kExport: {
      OptionSet set("trace export", "Writes the tables of a trace as text.",
                    "tessera trace export out.h5 --table samples > samples.csv");
      set.file("file", &o.files, "the trace");
      set.choice("table", &o.table, {"points", "attempts", "samples", "all"}, "which table");
      set.choice("format", &o.format, {"csv", "jsonl"}, "form of a table");
      set.text("output", &o.output, "DIR",
               "folder for one file a table (TABLE.csv); without it the table goes to standard output");
      return set;
    }
    case TraceOptions::Action::kMerge:
      break;
  }
  OptionSet set("trace merge", "Joins the points of several traces in one.",
                "tessera trace merge --output all.h5 a.h5 b.h5");
  set.text("output", &o.output, "FILE.h5", "the trace to write").required = true;
  set.files("files", &o.files, "traces to join");
  return set;
}

OptionSet report_options(ReportOptions& o) {
  OptionSet set(
      "report",
      "Prints one row a point of one or more traces: methods with their native budgets, mean score with its "
      "95 % interval, change from the dense point of the same model, task, length and seed, measured "
      "sparsity, time, and what crossed ranks beside an all-gather.",
      "tessera report dense.h5 sparse.h5 --format markdown");
  set.files("files", &o.files, "traces or journals");
  set.choice("format", &o.format, {"text", "markdown", "csv"},
             "form of the table; text and markdown leave out columns that are empty in every row");
  return set;
}

}  // namespace tessera
