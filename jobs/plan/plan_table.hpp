// A plan in the four forms that it is printed in.
#pragma once

#include <string>

#include "jobs/plan/plan.hpp"
#include "jobs/plan/plan_check.hpp"

namespace tessera {

struct PlanReport {
  const PlanSetup& setup;
  const Machine& machine;
  const Plan& plan;
};

// text and markdown: heading, counts of the model, a row a grid, what is assumed; rounded. csv: the rows,
// full precision, always the same columns. json: everything, in bytes, operations and seconds.
std::string plan_text(const PlanReport& report, const std::string& format);

}  // namespace tessera
