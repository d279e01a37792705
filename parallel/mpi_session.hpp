// How this process was started, and the MPI library for as long as it is used.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "parallel/communicator.hpp"
#include "parallel/grid.hpp"
#include "parallel/message_channel.hpp"
#include "runtime/core/error.hpp"

namespace tessera {

// What the environment says before MPI starts.
struct LaunchEnvironment {
  int expected_ranks = 1;    // processes that the launcher says it started; 1 without a launcher
  int slurm_step_tasks = 0;  // tasks of the Slurm step that this process is one of; 0 outside Slurm
  bool under_launcher = false;
  std::string launcher;  // "Open MPI mpirun", "PMI", "PMIx", "Slurm" or empty
  int local_rank = 0;    // among the processes on this machine
  int local_size = 1;
};

LaunchEnvironment detect_launch();
// lookup returns null for a variable that is not set.
LaunchEnvironment detect_launch(const std::function<const char*(const char*)>& lookup);

class MpiSession {  // move-only
 public:
  // Under a launcher: arranges that this process ends with its parent, then MPI_Init_thread(MULTIPLE);
  // without one no MPI call is made. Where MPI runs already it is used and left running. UsageError when MPI
  // sees one process but a Slurm step of several tasks, or another MPI's mpirun, started more: each of them
  // would do the whole work.
  static MpiSession start(const LaunchEnvironment& launch);

  // Finalises MPI, unless an exception is under way: a rank that fails alone would wait there for the others.
  ~MpiSession();
  MpiSession(MpiSession&&) noexcept;
  MpiSession& operator=(MpiSession&&) noexcept;

  int rank() const;
  int size() const;
  const LaunchEnvironment& launch() const;  // local_rank and local_size as MPI knows them
  std::string library_version() const;      // "Open MPI v4.1.4"

  // Each of these is a collective call, gives a communicator of its own, and must not outlive the session.
  std::unique_ptr<Communicator> world();
  std::unique_ptr<Communicator> split(int color,
                                      int key);  // ranks of one color stay together, ordered by key
  std::unique_ptr<MessageChannel> message_channel();

  // Collective, when all ranks end in order. Communicators made here are no longer usable.
  void finalize();
  // Ends the whole job at once with this code (mpirun exits with it), whatever the other ranks do.
  [[noreturn]] void abort(ExitCode code);

 private:
  struct State;
  explicit MpiSession(std::unique_ptr<State> state);

  std::unique_ptr<State> state_;
};

Grid make_grid(MpiSession& session,
               const GridShape& shape);  // collective; communicators of one rank are local

// From now on this process is killed within a second of its parent's end, whatever its other threads do: no
// rank outlives a killed mpirun.
void die_with_parent();

}  // namespace tessera
