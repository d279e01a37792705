// The samples of a run: which are left to do, made on all ranks, gathered at rank 0.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "jobs/tasks/task.hpp"
#include "parallel/communicator.hpp"
#include "runtime/model/completion.hpp"

namespace tessera {

// One piece of work: sample `sample` of task `point` of the run.
struct PendingSample {
  std::int64_t point = 0;
  std::int64_t sample = 0;
};

struct PreparedSample {
  PendingSample which;
  TaskSample content;
};

// Every rank makes its share of the pending samples (OpenMP over them); rank 0 gets all of them, longest
// first. The pending list is read at rank 0 and sent to the others. Once stop_requested says so, a rank makes
// no more. Collective.
std::vector<PreparedSample> prepare_samples(Communicator& world, std::vector<PendingSample> pending,
                                            const std::vector<const Task*>& tasks, const TaskContext& context,
                                            const std::function<bool()>& stop_requested);

}  // namespace tessera
