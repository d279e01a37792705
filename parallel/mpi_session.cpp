#include "parallel/mpi_session.hpp"

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "parallel/mpi_communicator.hpp"

namespace tessera {
namespace {

[[noreturn]] void refuse_lone_rank(const LaunchEnvironment& launch) {
  if (launch.slurm_step_tasks > 1 && launch.launcher != "PMI") {
    throw UsageError(
        "Slurm started {} tasks, but MPI sees a world of one: each would do all the work; start the command "
        "with mpirun, or with srun --mpi=pmix (for one rank on purpose: mpirun -np 1)",
        launch.slurm_step_tasks);
  }
  throw UsageError(
      "the launcher ({}) started {} processes, but MPI sees a world of one: each would do all the work; "
      "use the mpirun of the MPI library that tessera is linked with",
      launch.launcher, launch.expected_ranks);
}

// Ranks wait by spinning. With more ranks than cores a rank that waits must give its core to one that works;
// Open MPI knows only where it counts slots itself. What the user set stays.
void yield_when_crowded(const LaunchEnvironment& launch) {
  if (launch.local_size > sysconf(_SC_NPROCESSORS_ONLN))
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", /*overwrite=*/0);
}

class MpiMessageChannel final : public MessageChannel {
 public:
  explicit MpiMessageChannel(MpiHandle handle) : handle_(std::move(handle)) {}

  void send(std::span<const std::byte> bytes, int to, int tag) override {
    TESSERA_CHECK(tag >= 0 && tag <= 32767 && to >= 0 && to < handle_.size());
    TESSERA_CHECK(bytes.size() <= kMaxMpiMessageBytes);
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_CHECK(handle_.rank(), MPI_Isend(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, to, tag,
                                        handle_.get(), &request));
    for (;;) {
      int done = 0;
      MPI_CHECK(handle_.rank(), MPI_Test(&request, &done, MPI_STATUS_IGNORE));
      if (done != 0) return;
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }

  std::optional<Message> poll(int tag) override {
    // A matched probe: what is found here cannot be received by another thread in between.
    int found = 0;
    MPI_Message matched = MPI_MESSAGE_NULL;
    MPI_Status status;
    MPI_CHECK(handle_.rank(), MPI_Improbe(MPI_ANY_SOURCE, tag == kAnyTag ? MPI_ANY_TAG : tag, handle_.get(),
                                          &found, &matched, &status));
    if (found == 0) return std::nullopt;
    int count = 0;
    MPI_CHECK(handle_.rank(), MPI_Get_count(&status, MPI_BYTE, &count));
    Message message{status.MPI_SOURCE, status.MPI_TAG,
                    std::vector<std::byte>(static_cast<std::size_t>(count))};
    MPI_CHECK(handle_.rank(), MPI_Mrecv(message.bytes.data(), count, MPI_BYTE, &matched, MPI_STATUS_IGNORE));
    return message;
  }

 private:
  MpiHandle handle_;
};

MpiHandle duplicate_world(int rank) {
  MPI_Comm copy = MPI_COMM_NULL;
  MPI_CHECK(rank, MPI_Comm_dup(MPI_COMM_WORLD, &copy));
  return MpiHandle(copy);
}

}  // namespace

struct MpiSession::State {
  LaunchEnvironment launch;
  bool uses_mpi = false;
  bool must_finalize = false;  // MPI was started here
  int rank = 0;
  int size = 1;
  int exceptions_at_start = std::uncaught_exceptions();
};

MpiSession::MpiSession(std::unique_ptr<State> state) : state_(std::move(state)) {}
MpiSession::MpiSession(MpiSession&&) noexcept = default;
MpiSession& MpiSession::operator=(MpiSession&&) noexcept = default;

MpiSession MpiSession::start(const LaunchEnvironment& launch) {
  MpiSession session(std::make_unique<State>());
  State& state = *session.state_;
  state.launch = launch;
  if (!launch.under_launcher) {
    if (launch.slurm_step_tasks > 1) refuse_lone_rank(launch);
    return session;
  }

  die_with_parent();
  yield_when_crowded(launch);
  int running = 0;
  MPI_CHECK(-1, MPI_Initialized(&running));
  int level = MPI_THREAD_SINGLE;
  if (running != 0) {
    MPI_CHECK(-1, MPI_Query_thread(&level));
  } else {
    MPI_CHECK(-1, MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &level));
    state.must_finalize = true;
  }
  state.uses_mpi = true;
  MPI_CHECK(-1, MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
  MPI_CHECK(-1, MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN));
  MPI_CHECK(-1, MPI_Comm_rank(MPI_COMM_WORLD, &state.rank));
  MPI_CHECK(-1, MPI_Comm_size(MPI_COMM_WORLD, &state.size));

  if (state.size == 1 && launch.expected_ranks > 1) {
    session.finalize();
    refuse_lone_rank(launch);
  }
  if (level < MPI_THREAD_MULTIPLE) {  // the same on every rank
    session.finalize();
    throw UsageError(
        "{} grants thread level {}, but MPI_THREAD_MULTIPLE ({}) is needed: use a build of MPI with threads",
        session.library_version(), level, MPI_THREAD_MULTIPLE);
  }

  MPI_Comm machine = MPI_COMM_NULL;
  MPI_CHECK(state.rank,
            MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, state.rank, MPI_INFO_NULL, &machine));
  const MpiHandle local(machine);
  state.launch.local_rank = local.rank();
  state.launch.local_size = local.size();
  return session;
}

MpiSession::~MpiSession() {
  if (state_ == nullptr || std::uncaught_exceptions() > state_->exceptions_at_start) return;
  try {
    finalize();
  } catch (const Error&) {
    // The work is done and a destructor has nobody to tell.
  }
}

void MpiSession::finalize() {
  if (std::exchange(state_->must_finalize, false)) MPI_CHECK(state_->rank, MPI_Finalize());
}

int MpiSession::rank() const {
  return state_->rank;
}
int MpiSession::size() const {
  return state_->size;
}
const LaunchEnvironment& MpiSession::launch() const {
  return state_->launch;
}

std::string MpiSession::library_version() const {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);  // allowed before MPI_Init
  std::string version(text);
  return version.substr(0, version.find_first_of(",\n"));
}

std::unique_ptr<Communicator> MpiSession::world() {
  if (state_->size == 1) return make_local_communicator();
  return std::make_unique<MpiCommunicator>(duplicate_world(state_->rank));
}

std::unique_ptr<Communicator> MpiSession::split(int color, int key) {
  if (state_->size == 1) return make_local_communicator();
  MPI_Comm part = MPI_COMM_NULL;
  MPI_CHECK(state_->rank, MPI_Comm_split(MPI_COMM_WORLD, color, key, &part));
  MpiHandle handle(part);
  if (handle.size() == 1) return make_local_communicator();
  return std::make_unique<MpiCommunicator>(std::move(handle));
}

std::unique_ptr<MessageChannel> MpiSession::message_channel() {
  if (state_->size == 1) return make_local_message_channel();
  return std::make_unique<MpiMessageChannel>(duplicate_world(state_->rank));
}

void MpiSession::abort(ExitCode code) {
  std::fflush(nullptr);
  if (state_->uses_mpi && state_->size > 1) MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
  std::_Exit(static_cast<int>(code));
}

// Not prctl(PR_SET_PDEATHSIG): the kernel sends that signal when the *thread* that forked us ends, and a
// launcher may fork from a thread that it later ends. A look at the parent four times a second has no such
// trap.
void die_with_parent() {
  static std::once_flag watched;
  std::call_once(watched, [] {
    const pid_t parent = getppid();
    std::thread([parent] {
      while (getppid() == parent) std::this_thread::sleep_for(std::chrono::milliseconds(250));
      kill(getpid(), SIGKILL);
    }).detach();
  });
}

}  // namespace tessera
