// What the ranks of a job must have in common, told by each (parallel/handshake.hpp).
#pragma once

#include <string>
#include <vector>

#include "jobs/options.hpp"
#include "parallel/handshake.hpp"

namespace tessera {

// The program and its libraries, the options as they were given, and the settings from outside that choose
// other arithmetic; for a run on GPUs also the driver and the CUDA runtime. Machines may differ: their
// processors are no part of this. Of a program built from changed sources, or from none that git knows, also
// a hash of the program itself: its revision does not say what it is.
std::vector<Fact> launch_facts(const ParsedCommand& command, const std::string& options);

// Collective, after launch_facts were found equal. Where ranks run on unlike processors and nothing fixes
// OpenBLAS's kernels, one line for rank 0 to print; else empty.
std::string unlike_processors_warning(Communicator& world);

}  // namespace tessera
