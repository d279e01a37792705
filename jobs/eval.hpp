// `tessera eval`: the main job. Answers a task's samples with a model on all ranks and leaves journal and
// trace.
#pragma once

#include <string>

#include "jobs/options.hpp"
#include "parallel/mpi_session.hpp"

namespace tessera {

// Returns kDone or kStopped; throws for the rest. Collective over the session's ranks.
ExitCode run_eval(const EvalOptions& options, MpiSession& session, const std::string& command_line);

}  // namespace tessera
