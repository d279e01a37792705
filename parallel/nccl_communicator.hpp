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
  // For all ranks to join, and in wait() for what was enqueued: past it this rank aborts and throws.
  std::chrono::milliseconds timeout{60000};
};

class NcclCommunicator {
 public:
  // Collective over `host`: its rank 0 makes the id. PeerError when not all ranks joined within the timeout,
  // or NCCL failed; the message names rank, group and operation.
  NcclCommunicator(Communicator& host, const NcclOptions& options);
  ~NcclCommunicator();  // aborts what is under way: wait() before where results matter
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
  // failure, aborts and throws a PeerError that names `operation`.
  void wait(StreamView stream, std::string_view operation);
  // Ends kernels of this communicator that wait for a peer. Nothing may be asked of it afterwards.
  void abort() noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tessera::cuda
