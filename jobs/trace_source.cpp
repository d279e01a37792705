#include "jobs/trace_source.hpp"

#include "io/trace_check.hpp"
#include "io/trace_reader.hpp"

namespace tessera {

std::unique_ptr<TraceSource> open_source(const std::string& path) {
  auto source = std::make_unique<TraceSource>();
  source->is_trace = is_hdf5_file(path);
  if (source->is_trace) {
    source->trace = read_trace(path);
    source->load = trace_loader(source->trace, path);
  } else {
    source->journal = read_journal(path);
    source->load = journal_loader(source->journal);
  }
  return source;
}

}  // namespace tessera
