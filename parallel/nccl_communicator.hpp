// Collectives of device memory, in the order of a stream, by NCCL. The ranks of a group are those of a host
// communicator, which carries NCCL's id and nothing else. Needs neither CUDA's header nor NCCL's: a binary
// that was built without NCCL refuses to make one, by a UsageError.
//
// All ranks of the group make the same calls in the same order. Calls enqueue and return; zero counts are
// allowed everywhere, and a group of one rank takes part in everything. Of one communicator at most one
// thread calls at a time.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "parallel/communicator.hpp"
#include "runtime/core/device.hpp"
#include "runtime/core/dtype.hpp"

namespace tessera::cuda {

enum class NcclType : std::uint8_t { kF32, kBF16, kF16, kInt32, kInt64, kUint64, kByte };
NcclType nccl_type_of(DType dtype);
std::size_t size_of(NcclType type);  // bytes an element

enum class NcclSum : std::uint8_t { kSum, kMax };

// "2.28.9", of the library that is loaded; empty without NCCL.
std::string nccl_version();

struct NcclOptions {
  Device device;
  std::string name = "world";  // of the group, for messages: "tp"
  int world_rank = 0;          // of this process, for messages
  // For all ranks to join, and in wait() for what was enqueued: past it this rank aborts and throws. Zero or
  // less: no limit.
  std::chrono::milliseconds timeout{60000};
};

// What a stream is waited for with.
struct NcclWait {
  std::string_view operation;
  // How far the stream is, as a number that grows: the deadline counts from its last change. May be empty.
  std::function<std::uint64_t()> progress;
  // Where the stream stands, in words, asked when the wait fails: "prefill, layer 3 mlp". May be empty.
  std::function<std::string()> place;
};

class NcclCommunicator {
 public:
  // Collective over `host`: its rank 0 makes the id. PeerError when not all ranks joined within the timeout,
  // or NCCL failed; the message names rank, group and operation. A rank that waits in `host` past the timeout
  // cannot throw: it prints a line and the process ends with code 5.
  NcclCommunicator(Communicator& host, const NcclOptions& options);
  // Ends in order, once what is enqueued is done; where an exception is under way, or that takes too long,
  // aborts. Graphs that hold its calls must be gone before.
  ~NcclCommunicator();
  NcclCommunicator(NcclCommunicator&&) noexcept;
  NcclCommunicator& operator=(NcclCommunicator&&) noexcept;

  int rank() const;
  int size() const;

  // send may be receive: in place. No NaN in a maximum.
  void all_reduce(const void* send, void* receive, std::int64_t count, NcclType type, NcclSum operation,
                  StreamView stream);
  // receive: size() × count elements, in rank order; send may be this rank's part of it.
  void all_gather(const void* send, void* receive, std::int64_t count, NcclType type, StreamView stream);
  // send: size() × count elements; receive: count, the sum of everybody's part rank().
  void reduce_scatter(const void* send, void* receive, std::int64_t count, NcclType type, StreamView stream);
  void broadcast(void* data, std::int64_t count, NcclType type, int root, StreamView stream);
  // One group of sends and receives, of bytes. At most one part to and from each rank, itself included; both
  // sides know the bytes, and parts of none are left out.
  void exchange(std::span<const SendPart> sends, std::span<const ReceivePart> receives, StreamView stream);

  // PeerError for what has failed so far, here or on a peer that told NCCL; no wait.
  void check();
  // Returns when the stream has done all that it holds. Polls NCCL meanwhile; past the timeout, or on a
  // failure, aborts and throws a PeerError that names operation and place, and the ranks of this machine that
  // have ended or are stopped.
  void wait(StreamView stream, const NcclWait& what);
  void wait(StreamView stream, std::string_view operation) { wait(stream, NcclWait{operation, {}, {}}); }
  // Ends kernels of this communicator that wait for a peer. Nothing may be asked of it afterwards. Should
  // NCCL not come to an end with that, a line says so and the process ends with code 5.
  void abort() noexcept;
  // Called before an abort: it gives back the graphs that hold calls of this communicator, for which NCCL
  // would wait. May be empty.
  void set_before_abort(std::function<void()> give_back);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tessera::cuda
