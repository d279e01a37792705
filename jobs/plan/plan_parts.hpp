// The steps in which a plan is made; see plan.hpp for the whole.
#pragma once

#include <vector>

#include "jobs/plan/plan.hpp"
#include "runtime/model/memory_needs.hpp"

namespace tessera {

RunShape run_of(const PlanProblem& problem, const GridShape& shape);
bool divides_model(const ModelConfig& config, int tp);  // heads, KV heads and MLP
std::vector<GridShape> grids_of(const PlanProblem& problem);

double memory_limit(const PlanProblem& problem, const Machine& machine);  // bytes a rank; 0: none
void fill_memory(const PlanProblem& problem, const Machine& machine, GridPlan& grid);
void fill_kv_used(const PlanProblem& problem, GridPlan& grid);

// Operations and bytes of a rank; cost is the whole model's.
void fill_prefill(const PlanProblem& problem, const Machine& machine, const SampleCost& cost, GridPlan& grid);
void fill_decode(const PlanProblem& problem, const Machine& machine, const SampleCost& cost, GridPlan& grid);
void fill_times(const PlanProblem& problem, const Machine& machine, GridPlan& grid);

}  // namespace tessera
