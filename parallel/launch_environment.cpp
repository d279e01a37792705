#include <cstdlib>
#include <optional>

#include "parallel/mpi_session.hpp"

namespace tessera {
namespace {

// Environment variables are input like any other: a number out of range counts as not set.
std::optional<int> read_int(const std::function<const char*(const char*)>& lookup, const char* name) {
  constexpr long kMost = 10'000'000;
  const char* text = lookup(name);
  if (text == nullptr || *text < '0' || *text > '9') return std::nullopt;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  // "4(x2),3" is how Slurm writes tasks by node: the first number is good enough.
  if ((*end != '\0' && *end != '(' && *end != ',') || value > kMost) return std::nullopt;
  return static_cast<int>(value);
}

}  // namespace

LaunchEnvironment detect_launch(const std::function<const char*(const char*)>& lookup) {
  LaunchEnvironment launch;
  const auto number = [&](const char* name) { return read_int(lookup, name); };

  // A batch script has SLURM_PROCID as well: `tessera` there without mpirun would use one of the job's tasks.
  if (number("SLURM_PROCID")) {
    launch.slurm_step_tasks = number("SLURM_STEP_NUM_TASKS").value_or(number("SLURM_NTASKS").value_or(1));
  }

  if (const auto size = number("OMPI_COMM_WORLD_SIZE")) {
    launch.launcher = "Open MPI mpirun";
    launch.expected_ranks = *size;
    launch.local_rank = number("OMPI_COMM_WORLD_LOCAL_RANK").value_or(0);
    launch.local_size = number("OMPI_COMM_WORLD_LOCAL_SIZE").value_or(1);
  } else if (const auto pmi_size = number("PMI_SIZE")) {
    launch.launcher = "PMI";
    launch.expected_ranks = *pmi_size;
    launch.local_rank = number("MPI_LOCALRANKID").value_or(number("SLURM_LOCALID").value_or(0));
    launch.local_size = number("MPI_LOCALNRANKS").value_or(number("SLURM_STEP_TASKS_PER_NODE").value_or(1));
  } else if (lookup("PMIX_NAMESPACE") != nullptr || lookup("PMIX_RANK") != nullptr) {
    launch.launcher = "PMIx";
    launch.expected_ranks = launch.slurm_step_tasks > 0 ? launch.slurm_step_tasks : 1;
    launch.local_rank = number("SLURM_LOCALID").value_or(0);
    launch.local_size = number("SLURM_STEP_TASKS_PER_NODE").value_or(1);
  }
  launch.under_launcher = !launch.launcher.empty();
  if (!launch.under_launcher && launch.slurm_step_tasks > 1) launch.launcher = "Slurm";
  return launch;
}

LaunchEnvironment detect_launch() {
  return detect_launch([](const char* name) { return std::getenv(name); });
}

}  // namespace tessera
