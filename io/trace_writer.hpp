// Derives the HDF5 trace from the journal (layout: DESIGN.md section 6). Serial: rank 0 only.
#pragma once

#include <functional>
#include <string>

#include "io/journal.hpp"
#include "io/trace_schema.hpp"

namespace tessera {

// Writes the trace under a private name in the same folder, reads it back, and renames it over `trace_path`.
// ResourceError when that fails, for whatever reason: then an older trace is still in place, and nothing is
// left beside it. `before_rename` is for tests. Samples are stored by (point, sample).
void write_trace(const TraceTables& tables, const LoadSample& load, const std::string& trace_path,
                 const std::function<void()>& before_rename = {});

// The same from a journal, whose title, source and history it fills in.
void write_trace(const JournalContents& contents, const std::string& trace_path,
                 const std::function<void()>& before_rename = {});

}  // namespace tessera
