// Options of the commands that read runs: `tessera trace` and `tessera report`.
#pragma once

#include "jobs/option_set.hpp"
#include "jobs/options.hpp"

namespace tessera {

OptionSet trace_options(TraceOptions& options);
OptionSet report_options(ReportOptions& options);

}  // namespace tessera
