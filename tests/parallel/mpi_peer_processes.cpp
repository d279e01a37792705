// Who of a group has ended or is stopped, told by the others of the same machine.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "parallel/mpi_session.hpp"
#include "parallel/peer_processes.hpp"

using namespace tessera;

namespace {

// A group whose rank 1 gives the process of a child of rank 0 for its own.
class Pretending : public Communicator {
 public:
  explicit Pretending(pid_t child) : child_(child) {}
  int rank() const override { return 0; }
  int size() const override { return 2; }
  void barrier() override {}
  void broadcast(void*, std::size_t, int) override {}
  void all_reduce_sum(float*, std::size_t) override {}
  void all_reduce_sum(std::int64_t*, std::size_t) override {}
  void all_reduce_max(std::int64_t*, std::size_t) override {}
  void all_reduce_max(float*, std::size_t) override {}
  void all_gather(const void* send, std::size_t bytes, void* receive) override {
    std::memcpy(receive, send, bytes);
    auto* second = static_cast<std::byte*>(receive) + bytes;
    std::memcpy(second, send, bytes);
    const std::int32_t rank_and_process[] = {7, static_cast<std::int32_t>(child_)};
    std::memcpy(second, rank_and_process, sizeof rank_and_process);
  }
  void all_gather_v(const void*, void*, std::span<const std::size_t>) override {}
  void scatter_v(const void*, std::span<const std::size_t>, void*, std::size_t, int) override {}
  std::vector<std::vector<std::byte>> gather(std::span<const std::byte>, int) override { return {}; }
  std::unique_ptr<PendingExchange> start_exchange(std::span<const SendPart>,
                                                  std::span<const ReceivePart>) override {
    return nullptr;
  }

 private:
  pid_t child_;
};

}  // namespace

TEST_CASE("ranks that run are not named") {
  MpiSession session = MpiSession::start(detect_launch());
  const auto world = session.world();
  const PeerProcesses peers(*world, session.rank());
  world->barrier();
  CHECK(peers.gone(0).empty());
  world->barrier();
}

TEST_CASE("a process that is stopped, or has ended, is named with its rank") {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    for (;;) pause();
  }
  Pretending group(child);
  const PeerProcesses peers(group, 0);
  CHECK(peers.gone(0).empty());
  kill(child, SIGSTOP);
  const std::string name = "rank 7 (process " + std::to_string(child) + ") ";
  CHECK(peers.gone(5000) == name + "is stopped");
  kill(child, SIGKILL);
  int status = 0;
  siginfo_t ended{};
  REQUIRE(waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOWAIT) == 0);
  CHECK(peers.gone(5000) == name + "has ended");  // a zombie
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(peers.gone(5000) == name + "has ended");
}
