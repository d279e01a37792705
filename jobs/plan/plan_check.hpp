// What `eval` would find wrong before it starts, all of it and not only the first: files, shapes, options,
// places. What is right becomes the problem of a plan.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "jobs/attention_setup.hpp"
#include "jobs/options.hpp"
#include "jobs/plan/plan.hpp"
#include "runtime/core/error.hpp"

namespace tessera {

struct Finding {
  ExitCode code;
  std::string text;  // one line
};

struct PlanSetup {
  std::vector<Finding> findings;
  std::vector<std::string> notes;                 // what the plan assumes
  std::optional<PlanProblem> problem;             // where nothing was found
  std::string model_name, rope, prefill, decode;  // for the heading
};

PlanSetup check_plan(const PlanOptions& options);

// What is asked as the problem of a plan; output_tokens: of an answer.
PlanProblem plan_problem(const EvalOptions& options, const ModelConfig& config,
                         const AttentionSetup& attention, const KeptWeights& weights,
                         std::int64_t output_tokens, int ranks);

// 3 where a file is bad, else 2 where an option is, else 4: what has to be put right first.
ExitCode code_of(const std::vector<Finding>& findings);

// Bytes that the journal and the trace of so many samples may take together, at most.
double output_bytes(const ModelConfig& config, int ranks, std::int64_t samples, std::int64_t output_tokens);

}  // namespace tessera
