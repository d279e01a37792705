#include <doctest/doctest.h>

#include "jobs/threads.hpp"

using namespace tessera;

TEST_CASE("ranks that share a set of cores share its threads") {
  CHECK(threads_of({64, 1, 64, 1}) == 64);
  CHECK(threads_of({64, 4, 64, 4}) == 16);  // mpirun --bind-to none
  CHECK(threads_of({32, 1, 64, 2}) == 32);  // one rank a socket: each has its own
  CHECK(threads_of({32, 2, 64, 4}) == 16);  // two ranks a socket
  CHECK(threads_of({2, 4, 2, 4}) == 1);     // more ranks than cores
  CHECK(threads_of({0, 1, 0, 1}) == 1);     // nothing known
}

TEST_CASE("idle cores are told of") {
  CHECK(idle_cores_warning({64, 4, 64, 4}).empty());
  CHECK(idle_cores_warning({32, 1, 64, 2}).empty());
  CHECK(idle_cores_warning({1, 1, 2, 2}).empty());
  CHECK(idle_cores_warning({2, 4, 2, 4}).empty());
  const std::string warning = idle_cores_warning({1, 1, 64, 2});  // mpirun's default for two ranks
  CHECK(warning.find("1 of the machine's 64 cores") != std::string::npos);
}

TEST_CASE("a world of one shares its cores with nobody") {
  const auto world = make_local_communicator();
  const CoreShare share = find_core_share(*world);
  CHECK(share.ranks_sharing == 1);
  CHECK(share.ranks_on_machine == 1);
  CHECK(share.bound_cores >= 1);
  CHECK(share.bound_cores <= share.machine_cores);
}
