// `tessera plan`: checks, plans, prints.
#pragma once

#include <cstdio>

#include "jobs/options.hpp"

namespace tessera {

// What is wrong goes to `errors`, a line each; the plan to `out`. Returns the exit code, or throws an Error.
int run_plan(const PlanOptions& options, std::FILE* out, std::FILE* errors);

}  // namespace tessera
