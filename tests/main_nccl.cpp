// The main of programs that ctest starts under mpirun, one rank a GPU as far as there are any: without a GPU,
// or without NCCL, they say so and exit with 77.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "parallel/nccl_communicator.hpp"
#include "runtime/core/device.hpp"

namespace {

// NCCL refuses two ranks on one GPU of one host: each becomes a host of its own, by sockets of this machine.
void pretend_own_host(int rank) {
  setenv("NCCL_HOSTID", ("tessera-test-" + std::to_string(rank)).c_str(), 1);
  setenv("NCCL_SOCKET_IFNAME", "lo", 0);
  setenv("NCCL_IB_DISABLE", "1", 0);
}

}  // namespace

int main(int argc, char** argv) {
  int provided = 0, rank = 0, ranks = 1;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  setenv("NCCL_NVLS_ENABLE", "0", 0);  // multicast needs rights that a test does not have
  const tessera::CudaInfo cuda = tessera::query_cuda();
  const std::string nccl = tessera::cuda::nccl_version();
  int result = 77;
  if (cuda.devices.empty() || nccl.empty()) {
    if (rank == 0) {
      std::printf("SKIPPED: %s (%s)\n", nccl.empty() ? "built without NCCL" : "no GPU", cuda.problem.c_str());
    }
  } else {
    if (rank == 0) std::printf("NCCL %s, %zu GPUs, %d ranks\n", nccl.c_str(), cuda.devices.size(), ranks);
    if (static_cast<std::size_t>(ranks) > cuda.devices.size()) pretend_own_host(rank);
    const int failed = doctest::Context(argc, argv).run();
    MPI_Allreduce(&failed, &result, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  }
  MPI_Finalize();
  return result;
}
