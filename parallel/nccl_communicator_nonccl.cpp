// Stands in where the binary is built without NCCL.
#include "parallel/nccl_communicator.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {
namespace {

[[noreturn]] void refuse() {
  throw UsageError(
      "this binary was built without NCCL, by which GPUs exchange data: build it where nccl.h and libnccl "
      "are found (libnccl-dev), or use one rank for each replica of the model");
}

}  // namespace

struct NcclCommunicator::State {};

std::string nccl_version() {
  return {};
}

NcclCommunicator::NcclCommunicator(Communicator&, const NcclOptions&) {
  refuse();
}
NcclCommunicator::~NcclCommunicator() = default;
NcclCommunicator::NcclCommunicator(NcclCommunicator&&) noexcept = default;
NcclCommunicator& NcclCommunicator::operator=(NcclCommunicator&&) noexcept = default;

int NcclCommunicator::rank() const {
  return 0;
}
int NcclCommunicator::size() const {
  return 1;
}
void NcclCommunicator::all_reduce(const void*, void*, std::int64_t, NcclType, NcclSum, StreamView) {
  refuse();
}
void NcclCommunicator::all_gather(const void*, void*, std::int64_t, NcclType, StreamView) {
  refuse();
}
void NcclCommunicator::reduce_scatter(const void*, void*, std::int64_t, NcclType, StreamView) {
  refuse();
}
void NcclCommunicator::broadcast(void*, std::int64_t, NcclType, int, StreamView) {
  refuse();
}
void NcclCommunicator::exchange(std::span<const SendPart>, std::span<const ReceivePart>, StreamView) {
  refuse();
}
void NcclCommunicator::check() {}
void NcclCommunicator::wait(StreamView, const NcclWait&) {
  refuse();
}
void NcclCommunicator::abort() noexcept {}
void NcclCommunicator::set_before_abort(std::function<void()>) {}

}  // namespace tessera::cuda
