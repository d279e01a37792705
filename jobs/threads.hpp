// How many CPU threads each rank of a machine uses.
#pragma once

#include <string>

#include "parallel/communicator.hpp"

namespace tessera {

// Physical cores that one rank may run on, and how it shares them.
struct CoreShare {
  int bound_cores = 0;    // cores of the set that this rank is bound to
  int ranks_sharing = 1;  // ranks of this machine bound to the very same set, this one included
  int machine_cores = 0;  // of the whole machine
  int ranks_on_machine = 1;
};

// An equal part of the set for each rank that shares it, at least one thread.
int threads_of(const CoreShare& share);

// Words for the user where launching left at least half of the machine's cores to nobody; else empty.
std::string idle_cores_warning(const CoreShare& share);

// Compares the sets of all ranks. Collective.
CoreShare find_core_share(Communicator& world);

}  // namespace tessera
