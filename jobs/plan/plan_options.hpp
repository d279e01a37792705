// The options of `tessera plan` beside those of `eval`.
#pragma once

#include "jobs/option_set.hpp"
#include "jobs/options.hpp"

namespace tessera {

void add_plan_options(OptionSet& set, PlanOptions& options);

// After parsing: the number of ranks, and the types that a GPU would run with where none were given.
// UsageError for grids that do not divide the ranks.
void settle_plan_options(const OptionSet& set, PlanOptions& options);

}  // namespace tessera
