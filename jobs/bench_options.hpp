// Options of `tessera bench KIND`.
#pragma once

#include "jobs/options.hpp"

namespace tessera {

// words: behind the kind. UsageError.
ParsedCommand parse_bench(const std::vector<std::string>& words, BenchOptions::Kind kind);

}  // namespace tessera
