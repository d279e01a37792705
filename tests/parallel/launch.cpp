// What needs no second rank: the launch environment, the grid's arithmetic, the local communicator and
// channel, and the watchdog, which is tried in a child process because it ends the process.
#include <doctest/doctest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <map>
#include <string>
#include <thread>

#include "parallel/agreement.hpp"
#include "parallel/mpi_session.hpp"
#include "parallel/watchdog.hpp"

using namespace tessera;
using std::chrono::milliseconds;

namespace {

LaunchEnvironment detect(const std::map<std::string, std::string>& variables) {
  return detect_launch([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

struct Ended {
  int code;
  std::string output;
};

// Runs `work` in a child with stderr in a pipe.
template <typename Work>
Ended run_in_child(const Work& work) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  std::fflush(nullptr);  // else the child prints what is buffered once more
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    work();
    _exit(0);
  }
  close(ends[1]);
  Ended ended{};
  char text[512];
  for (ssize_t got; (got = read(ends[0], text, sizeof text)) > 0;)
    ended.output.append(text, static_cast<std::size_t>(got));
  close(ends[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  ended.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return ended;
}

}  // namespace

TEST_CASE("the launcher is told from the environment") {
  CHECK_FALSE(detect({}).under_launcher);
  CHECK(detect({}).expected_ranks == 1);

  const auto open_mpi = detect({{"OMPI_COMM_WORLD_SIZE", "8"},
                                {"OMPI_COMM_WORLD_LOCAL_RANK", "3"},
                                {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                                {"PMIX_RANK", "7"}});
  CHECK(open_mpi.under_launcher);
  CHECK(open_mpi.expected_ranks == 8);
  CHECK(open_mpi.local_rank == 3);
  CHECK(open_mpi.local_size == 4);

  const auto slurm_pmix = detect({{"PMIX_RANK", "1"},
                                  {"SLURM_PROCID", "1"},
                                  {"SLURM_STEP_NUM_TASKS", "6"},
                                  {"SLURM_NTASKS", "99"},
                                  {"SLURM_STEP_TASKS_PER_NODE", "3(x2)"}});
  CHECK(slurm_pmix.under_launcher);
  CHECK(slurm_pmix.expected_ranks == 6);
  CHECK(slurm_pmix.local_size == 3);

  const auto plain_slurm = detect({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}});
  CHECK_FALSE(plain_slurm.under_launcher);
  CHECK(plain_slurm.slurm_step_tasks == 4);
  CHECK(detect({{"SLURM_NTASKS", "4"}}).slurm_step_tasks == 0);  // salloc's shell is no task

  CHECK(detect({{"PMI_SIZE", "4"}}).expected_ranks == 4);
  CHECK_FALSE(detect({{"PMI_SIZE", "-4"}}).under_launcher);
  CHECK_FALSE(detect({{"PMI_SIZE", "4x"}}).under_launcher);
  CHECK_FALSE(detect({{"PMI_SIZE", "99999999999999999999"}}).under_launcher);
}

TEST_CASE("without a launcher the session is a world of one; a task of a larger Slurm step is refused") {
  MpiSession session = MpiSession::start({});
  CHECK(session.size() == 1);
  CHECK(session.world()->size() == 1);
  const Grid grid = make_grid(session, {1, 1, 1});
  CHECK(grid.is_group_leader());
  CHECK(grid.tp->size() == 1);
  session.finalize();

  CHECK_THROWS_WITH_AS(MpiSession::start(detect({{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "4"}})),
                       doctest::Contains("srun --mpi=pmix"), UsageError);
  CHECK_NOTHROW(MpiSession::start(detect({{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}})));
}

TEST_CASE("abort of a world of one ends it with the code") {
  const Ended ended = run_in_child([] { MpiSession::start({}).abort(ExitCode::kNumerical); });
  CHECK(ended.code == 6);
}

TEST_CASE("ranks and places correspond, tp fastest") {
  const GridShape shape{2, 3, 4};
  for (int rank = 0; rank < 24; ++rank) CHECK(world_rank_of(shape, place_of(shape, rank)) == rank);
  CHECK(place_of(shape, 1).tp == 1);
  CHECK(place_of(shape, 2).sp == 1);
  CHECK(place_of(shape, 6).dp == 1);
}

TEST_CASE("solve_grid fits the ranks or names all numbers") {
  CHECK(solve_grid(2, 1, 0, 8).dp == 4);
  CHECK(solve_grid(2, 2, 2, 8).ranks() == 8);
  struct Bad {
    int tp, sp, dp, ranks;
  };
  for (const Bad& bad : {Bad{3, 1, 0, 8}, Bad{2, 2, 1, 8}, Bad{16, 1, 0, 8}, Bad{0, 1, 0, 8},
                         Bad{1, -1, 0, 8}, Bad{1, 1, -1, 8}, Bad{1 << 30, 1 << 30, 0, 8},
                         Bad{1 << 16, 1 << 16, 1 << 30, 8}, Bad{1, 1, 1 << 30, 8}}) {
    try {
      solve_grid(bad.tp, bad.sp, bad.dp, bad.ranks);
      FAIL("not refused");
    } catch (const UsageError& error) {
      const std::string text = error.what();
      CHECK(text.find("--tp " + std::to_string(bad.tp)) != std::string::npos);
      CHECK(text.find("--sp " + std::to_string(bad.sp)) != std::string::npos);
    }
  }
}

TEST_CASE("the local communicator copies") {
  const auto world = make_local_communicator();
  const std::byte data[3] = {std::byte{1}, std::byte{2}, std::byte{3}};
  std::byte copy[3] = {};
  const std::size_t counts[1] = {3};
  world->all_gather_v(data, copy, counts);
  CHECK(copy[2] == std::byte{3});
  copy[2] = {};
  world->scatter_v(data, counts, copy, 3, 0);
  CHECK(copy[2] == std::byte{3});
  copy[2] = {};
  world->all_gather(data, 3, copy);
  CHECK(copy[2] == std::byte{3});
  CHECK(world->gather(data, 0) == std::vector<std::vector<std::byte>>{{data[0], data[1], data[2]}});
  world->all_gather(nullptr, 0, nullptr);
  float sum = 2;
  world->all_reduce_sum(&sum, 1);
  CHECK(sum == 2);
  CHECK_THROWS_WITH_AS(run_agreed(*world, [] { throw InputError("x: y: z"); }), "x: y: z", InputError);
}

TEST_CASE("the local channel is a queue by tag, and receive waits") {
  const auto channel = make_local_message_channel();
  const std::byte one[1] = {std::byte{1}};
  channel->send(one, 0, 5);
  channel->send({}, 0, 6);
  CHECK_FALSE(channel->poll(7).has_value());
  CHECK(channel->receive(6).bytes.empty());
  CHECK(channel->receive().tag == 5);
  std::thread later([&] {
    std::this_thread::sleep_for(milliseconds(30));
    channel->send(one, 0, 9);
  });
  CHECK(channel->receive(9).bytes.size() == 1);
  later.join();
}

TEST_CASE("the watchdog ends a process that makes no progress, and says where it was") {
  const Ended ended = run_in_child([] {
    Watchdog watchdog(milliseconds(200), 3, "node17");
    const auto work = watchdog.work("prefill");
    watchdog.beat("attend", 12);
    std::this_thread::sleep_for(milliseconds(20000));
  });
  CHECK(ended.code == 5);
  CHECK(ended.output.find("rank 3 (node17): no progress for 0.") == 0);
  CHECK(ended.output.find("in layer 12 attend; the job ends at 0.2 s") != std::string::npos);
  CHECK(ended.output.find("in layer 12 attend; ending the job\n") != std::string::npos);
  CHECK(std::count(ended.output.begin(), ended.output.end(), '\n') == 2);
}

TEST_CASE(
    "the watchdog lets be what beats, what waits for nobody, what is not under way, and what asked for no "
    "limit") {
  const Ended ended = run_in_child([] {
    Watchdog watchdog(milliseconds(400), 0, "host");
    std::this_thread::sleep_for(milliseconds(900));  // nothing under way
    {
      const auto work =
          watchdog.work("a name much longer than what is kept of it, which must not spill over anything");
      for (int i = 0; i < 30; ++i) {
        std::this_thread::sleep_for(milliseconds(20));
        watchdog.beat("attend", i);
      }
    }
    {
      const auto work = watchdog.work("prefill");
      watchdog.beat("attend", 3, /*waits=*/false);  // long work of its own, which no other rank holds up
      std::this_thread::sleep_for(milliseconds(900));
    }
    std::this_thread::sleep_for(milliseconds(900));
    Watchdog none(milliseconds(0), 0, "host");
    const auto forever = none.work("idle");
    std::this_thread::sleep_for(milliseconds(50));
  });
  CHECK(ended.code == 0);
  CHECK(ended.output == "");
}

TEST_CASE("a process that was stopped has not hung") {
  const Ended ended = run_in_child([] {
    Watchdog watchdog(milliseconds(600), 0, "host");
    const auto work = watchdog.work("prefill");
    const pid_t self = getpid();
    if (fork() == 0) {  // sends this process to sleep for longer than the timeout
      close(STDERR_FILENO);
      std::this_thread::sleep_for(milliseconds(50));
      kill(self, SIGSTOP);
      std::this_thread::sleep_for(milliseconds(1000));
      kill(self, SIGCONT);
      _exit(0);
    }
    std::this_thread::sleep_for(milliseconds(1100));
    watchdog.beat("next");
  });
  CHECK(ended.code == 0);
  CHECK(ended.output == "");
}

TEST_CASE("die_with_parent: a spinning grandchild ends when its parent is killed") {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t parent = fork();
  REQUIRE(parent >= 0);
  if (parent == 0) {
    if (fork() == 0) {
      die_with_parent();
      const char ready = 'r';
      [[maybe_unused]] const auto written = write(ends[1], &ready, 1);
      for (std::atomic<std::uint64_t> i{0};;) ++i;
    }
    for (;;) pause();
  }
  close(ends[1]);
  char ready = 0;
  REQUIRE(read(ends[0], &ready, 1) == 1);
  REQUIRE(kill(parent, SIGKILL) == 0);
  REQUIRE(waitpid(parent, nullptr, 0) == parent);
  // The pipe closes when the last holder of its other end, the grandchild, is gone.
  pollfd closed{ends[0], POLLIN, 0};
  CHECK(::poll(&closed, 1, 5000) == 1);
  CHECK(read(ends[0], &ready, 1) == 0);
  close(ends[0]);
}
