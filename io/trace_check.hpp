// Checks of traces and journals that go beyond opening them, for `tessera trace check` and for tests.
#pragma once

#include <string>

#include "io/trace_schema.hpp"

namespace tessera {

// True for a file that begins as an HDF5 file does; InputError when it cannot be read.
bool is_hdf5_file(const std::string& path);

// Reads all arrays of all samples (HDF5 then verifies their checksums) and checks what must hold between
// values: visible pairs at most causal pairs, tokens read at most those of a dense cache, times and
// sparsities in range. InputError "PATH: point 0 sample 3: ..." names the first that does not.
void check_values(const TraceTables& tables, const LoadSample& load, const std::string& path);

// Every sample of the trace is in the journal with the same values: InputError when not. Returns how many
// samples only the journal has.
std::size_t check_against_journal(const TraceTables& trace, const TraceTables& journal,
                                  const std::string& path);

}  // namespace tessera
