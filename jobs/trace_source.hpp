// What the commands that read runs are given: a trace or a journal, told apart by the file itself.
#pragma once

#include <memory>
#include <string>

#include "io/journal.hpp"
#include "io/trace_schema.hpp"

namespace tessera {

// A run read from its trace or from its journal, with its arrays at hand. Stays where it is, since the loader
// refers to it.
struct TraceSource {
  TraceTables trace;
  JournalContents journal;
  bool is_trace = false;
  LoadSample load;
  const TraceTables& tables() const { return is_trace ? trace : journal; }
};

// InputError names the file and what is wrong with it.
std::unique_ptr<TraceSource> open_source(const std::string& path);

}  // namespace tessera
