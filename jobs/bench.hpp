// `tessera bench`: timings of this machine, printed with their ratio to a limit. Programs, never tests.
#pragma once

#include "jobs/options.hpp"

namespace tessera {

int run_bench(const BenchOptions& options);  // prints to standard output; returns the exit code

}  // namespace tessera
