// How much memory this process may still take: what the machine has, and what its control groups allow.
#pragma once

#include <cstdint>
#include <string>

namespace tessera {

struct HostMemory {
  std::int64_t total = 0;      // bytes of the machine
  std::int64_t available = 0;  // bytes: the machine's, or the tightest control group's where that is less
  std::int64_t limit = 0;      // bytes: the smallest limit of a control group of this process; 0: none
};

// Every control group from this process's own up to the root counts: a batch system limits a job, a step or a
// task, not the root. Pages of files that a group has cached can be reclaimed and count as available. `root`
// stands before /proc and /sys in tests.
HostMemory read_host_memory(const std::string& root = "");

}  // namespace tessera
