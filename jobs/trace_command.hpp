// `tessera trace check|rebuild|export|merge`. They print to `out`, and return the exit code or throw an
// Error.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

namespace tessera {

// Checks a trace, and against its journal where that lies beside it; or a journal alone.
int run_trace_check(const std::string& path, std::FILE* out);

// Derives the trace again from its journal. `path` is the trace or the journal (NAME.journal makes NAME).
int run_trace_rebuild(const std::string& path, std::FILE* out);

struct TraceExport {
  std::string path;               // a trace or a journal
  std::string table = "samples";  // samples, points or attempts
  std::string format = "csv";     // csv or jsonl
};
int run_trace_export(const TraceExport& options, std::FILE* out);

// One trace of the points of several traces or journals. A path that exists is replaced in one step.
int run_trace_merge(const std::string& output, const std::vector<std::string>& inputs, std::FILE* out);

}  // namespace tessera
