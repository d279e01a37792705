#include "jobs/threads.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <vector>

#include "jobs/info.hpp"
#include "runtime/core/random.hpp"

namespace tessera {

int threads_of(const CoreShare& share) {
  return std::max(1, share.bound_cores / std::max(1, share.ranks_sharing));
}

std::string idle_cores_warning(const CoreShare& share) {
  // Sets that overlap in part count twice here: that only keeps the warning back.
  const int used = threads_of(share) * share.ranks_on_machine;
  if (2 * used > share.machine_cores) return {};
  return fmt::format(
      "each rank is bound to {} of the machine's {} cores, so that {} are used in all; mpirun --bind-to "
      "none, "
      "or --map-by slot:PE=N, gives a rank more",
      share.bound_cores, share.machine_cores, used);
}

CoreShare find_core_share(Communicator& world) {
  struct Place {
    std::uint64_t host = 0;
    std::uint64_t set = 0;
  };
  const HostInfo info = collect_host_info();
  const Place own{stream_of(info.host), stream_of(info.bound)};
  std::vector<Place> all(static_cast<std::size_t>(world.size()));
  world.all_gather(&own, sizeof own, all.data());

  CoreShare share{info.bound_cores, 0, info.cores, 0};
  for (const Place& place : all) {
    share.ranks_on_machine += place.host == own.host;
    share.ranks_sharing += place.host == own.host && place.set == own.set;
  }
  return share;
}

}  // namespace tessera
