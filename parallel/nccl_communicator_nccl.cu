#include <nccl.h>
#include <unistd.h>

#include <exception>
#include <future>
#include <memory>
#include <thread>
#include <utility>

#include "parallel/nccl_communicator.hpp"
#include "parallel/peer_processes.hpp"
#include "parallel/watchdog.hpp"
#include "runtime/core/cuda_check.hpp"
#include "runtime/core/cuda_stream.hpp"
#include "runtime/core/error.hpp"
#include "runtime/core/host.hpp"

namespace tessera::cuda {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::microseconds kPollStep{100};  // while NCCL works on a call in the background
// A call is watched without sleep for this long: most are done within it.
constexpr std::chrono::microseconds kCallSpin{500};
// Likewise a stream that is waited for: decode steps end within it.
constexpr std::chrono::milliseconds kSpin{5};
constexpr std::chrono::seconds kMostForEnding{10};  // of a communicator, in order or by an abort

ncclDataType_t native_type(NcclType type) {
  switch (type) {
    case NcclType::kF32:
      return ncclFloat32;
    case NcclType::kBF16:
      return ncclBfloat16;
    case NcclType::kF16:
      return ncclFloat16;
    case NcclType::kInt32:
      return ncclInt32;
    case NcclType::kInt64:
      return ncclInt64;
    case NcclType::kUint64:
      return ncclUint64;
    case NcclType::kByte:
      return ncclUint8;
  }
  throw InternalError("an NCCL type has no native one");
}

ncclRedOp_t native_operation(NcclSum operation) {
  return operation == NcclSum::kSum ? ncclSum : ncclMax;
}

double seconds_of(std::chrono::milliseconds time) {
  return static_cast<double>(time.count()) * 1e-3;
}

}  // namespace

struct NcclCommunicator::State {
  NcclOptions options;
  int rank = 0;
  int size = 1;
  ncclComm_t comm = nullptr;
  PeerProcesses peers;
  std::function<void()> before_abort;
  std::string failure;  // what led to an abort
  int exceptions_at_start = std::uncaught_exceptions();

  ~State() { close(); }

  // In order. What is left over of it when a rank fails is nobody's concern: that is an abort.
  void close() noexcept {
    if (comm == nullptr) return;
    if (std::uncaught_exceptions() > exceptions_at_start) return abort();
    const auto deadline = Clock::now() + kMostForEnding;
    ncclResult_t status = ncclCommFinalize(comm);
    while (status == ncclInProgress) {
      if (ncclCommGetAsyncError(comm, &status) != ncclSuccess || Clock::now() > deadline) return abort();
      if (status == ncclInProgress) std::this_thread::sleep_for(kPollStep);
    }
    if (status != ncclSuccess) return abort();
    ncclCommDestroy(std::exchange(comm, nullptr));
  }

  // In a thread of its own: NCCL may wait here for what never comes.
  void abort() noexcept {
    if (comm == nullptr) return;
    const ncclComm_t ending = std::exchange(comm, nullptr);
    try {
      if (before_abort) before_abort();
      const auto ended = std::make_shared<std::promise<void>>();
      const std::future<void> end = ended->get_future();
      std::thread([ending, ended] {
        ncclCommAbort(ending);
        ended->set_value();
      }).detach();
      if (end.wait_for(kMostForEnding) == std::future_status::ready) return;
    } catch (const std::exception&) {
      // Neither memory nor a thread is left: the process ends below.
    }
    std::fprintf(stderr, "tessera: %s%s; NCCL does not end, ending the process\n", place().c_str(),
                 failure.c_str());
    std::fflush(stderr);
    _exit(static_cast<int>(ExitCode::kPeer));
  }

  std::string place() const {
    return fmt::format("rank {}: NCCL group {} (rank {} of {})", options.world_rank, options.name, rank,
                       size);
  }

  bool is_past(Clock::duration waited) const {
    return options.timeout.count() > 0 && waited > options.timeout;
  }

  [[noreturn]] void fail(std::string_view operation, const std::string& problem) {
    std::string culprits = peers.gone();
    if (culprits.empty()) {
      culprits = "another rank has probably ended or is stuck, look for the first error of the job";
    }
    failure = fmt::format(": {}: {}; {}", operation, problem, culprits);
    abort();
    throw PeerError("{}{}", place(), failure);
  }

  [[noreturn]] void fail(std::string_view operation, ncclResult_t status) {
    std::string problem = ncclGetErrorString(status);
    const char* last = ncclGetLastError(comm);
    if (last != nullptr && *last != '\0') problem += fmt::format(" ({})", last);
    fail(operation, problem);
  }

  [[noreturn]] void fail_late(std::string_view operation) {
    fail(operation, fmt::format("not all ranks did their part within {:g} s", seconds_of(options.timeout)));
  }

  // A call of a non-blocking communicator may go on in the background.
  void settle(ncclResult_t status, std::string_view operation) {
    const auto began = Clock::now();
    while (status == ncclInProgress) {
      if (const ncclResult_t asked = ncclCommGetAsyncError(comm, &status); asked != ncclSuccess) {
        fail(operation, asked);
      }
      if (status != ncclInProgress) break;
      const auto waited = Clock::now() - began;
      if (is_past(waited)) fail_late(operation);
      if (waited > kCallSpin) std::this_thread::sleep_for(kPollStep);
    }
    if (status != ncclSuccess) fail(operation, status);
  }

  void require_open(std::string_view operation) const {
    if (comm == nullptr) throw PeerError("{}: {}: the communicator was aborted before", place(), operation);
  }
};

std::string nccl_version() {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return {};
  return fmt::format("{}.{}.{}", version / 10000, version % 10000 / 100, version % 100);
}

NcclCommunicator::NcclCommunicator(Communicator& host, const NcclOptions& options)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.options = options;
  s.rank = host.rank();
  s.size = host.size();
  const DeviceScope scope(options.device);
  struct Invitation {
    ncclUniqueId id;
    std::int32_t status;  // of making it
  } invitation{};
  {
    // A call of MPI cannot be left: what does not come in time ends the process.
    Watchdog watchdog(options.timeout, options.world_rank, host_name());
    const Watchdog::Work work = watchdog.work(fmt::format("joining the NCCL group {}", options.name));
    if (s.rank == 0) invitation.status = static_cast<std::int32_t>(ncclGetUniqueId(&invitation.id));
    host.broadcast(&invitation, sizeof invitation, 0);
    s.peers = PeerProcesses(host, options.world_rank);
  }
  // The same on all ranks: none waits for one that has left.
  if (invitation.status != static_cast<std::int32_t>(ncclSuccess)) {
    s.fail("making the id", static_cast<ncclResult_t>(invitation.status));
  }
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const ncclResult_t status = ncclCommInitRankConfig(&s.comm, s.size, invitation.id, s.rank, &config);
  s.settle(status, "joining");
}

NcclCommunicator::~NcclCommunicator() = default;
NcclCommunicator::NcclCommunicator(NcclCommunicator&&) noexcept = default;
NcclCommunicator& NcclCommunicator::operator=(NcclCommunicator&&) noexcept = default;

int NcclCommunicator::rank() const {
  return state_->rank;
}

int NcclCommunicator::size() const {
  return state_->size;
}

void NcclCommunicator::all_reduce(const void* send, void* receive, std::int64_t count, NcclType type,
                                  NcclSum operation, StreamView stream) {
  if (count == 0) return;
  state_->require_open("all-reduce");
  state_->settle(ncclAllReduce(send, receive, static_cast<std::size_t>(count), native_type(type),
                               native_operation(operation), state_->comm, native(stream)),
                 "all-reduce");
}

void NcclCommunicator::all_gather(const void* send, void* receive, std::int64_t count, NcclType type,
                                  StreamView stream) {
  if (count == 0) return;
  state_->require_open("all-gather");
  state_->settle(ncclAllGather(send, receive, static_cast<std::size_t>(count), native_type(type),
                               state_->comm, native(stream)),
                 "all-gather");
}

void NcclCommunicator::reduce_scatter(const void* send, void* receive, std::int64_t count, NcclType type,
                                      StreamView stream) {
  if (count == 0) return;
  state_->require_open("reduce-scatter");
  state_->settle(ncclReduceScatter(send, receive, static_cast<std::size_t>(count), native_type(type), ncclSum,
                                   state_->comm, native(stream)),
                 "reduce-scatter");
}

void NcclCommunicator::broadcast(void* data, std::int64_t count, NcclType type, int root, StreamView stream) {
  if (count == 0) return;
  state_->require_open("broadcast");
  state_->settle(ncclBroadcast(data, data, static_cast<std::size_t>(count), native_type(type), root,
                               state_->comm, native(stream)),
                 "broadcast");
}

void NcclCommunicator::exchange(std::span<const SendPart> sends, std::span<const ReceivePart> receives,
                                StreamView stream) {
  constexpr std::string_view kOperation = "exchange";
  State& s = *state_;
  s.require_open(kOperation);
  // Between these two nothing may throw: an open group would swallow every later call of the thread.
  ncclResult_t status = ncclGroupStart();
  const auto note = [&status](ncclResult_t now) {
    if (status == ncclSuccess && now != ncclInProgress) status = now;
  };
  for (const SendPart& part : sends) {
    if (part.bytes != 0) {
      note(ncclSend(part.data, part.bytes, ncclUint8, part.peer, s.comm, native(stream)));
    }
  }
  for (const ReceivePart& part : receives) {
    if (part.bytes != 0) {
      note(ncclRecv(part.data, part.bytes, ncclUint8, part.peer, s.comm, native(stream)));
    }
  }
  const ncclResult_t ended = ncclGroupEnd();
  s.settle(status == ncclSuccess ? ended : status, kOperation);
}

void NcclCommunicator::check() {
  state_->require_open("check");
  ncclResult_t status = ncclSuccess;
  if (const ncclResult_t asked = ncclCommGetAsyncError(state_->comm, &status); asked != ncclSuccess) {
    state_->fail("check", asked);
  }
  if (status != ncclSuccess && status != ncclInProgress) state_->fail("check", status);
}

void NcclCommunicator::wait(StreamView stream, const NcclWait& what) {
  State& s = *state_;
  s.require_open(what.operation);
  const auto where = [&what] {
    const std::string place = what.place ? what.place() : std::string();
    return place.empty() ? std::string(what.operation) : fmt::format("{}, {}", what.operation, place);
  };
  auto began = Clock::now();
  std::uint64_t seen = what.progress ? what.progress() : 0;
  for (;;) {
    const cudaError_t done = cudaStreamQuery(native(stream));
    if (done == cudaSuccess) return;
    if (done != cudaErrorNotReady) {
      s.failure = ": " + where() + ": CUDA failed";
      s.abort();  // first: whoever is told of the error may wait for the stream
      CUDA_CHECK(done);
    }
    ncclResult_t status = ncclSuccess;
    if (const ncclResult_t asked = ncclCommGetAsyncError(s.comm, &status); asked != ncclSuccess) {
      s.fail(where(), asked);
    }
    if (status != ncclSuccess && status != ncclInProgress) s.fail(where(), status);
    const auto now = Clock::now();
    if (now - began <= kSpin) continue;
    if (what.progress) {
      if (const std::uint64_t reached = what.progress(); reached != seen) {
        seen = reached;
        began = now;
        continue;
      }
    }
    if (s.is_past(now - began)) s.fail_late(where());
    std::this_thread::sleep_for(kPollStep);
  }
}

void NcclCommunicator::abort() noexcept {
  state_->abort();
}

void NcclCommunicator::set_before_abort(std::function<void()> give_back) {
  state_->before_abort = std::move(give_back);
}

}  // namespace tessera::cuda
