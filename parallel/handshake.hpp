// Before any work: are all ranks of this job the same program, asked for the same?
#pragma once

#include <span>
#include <string>
#include <vector>

#include "parallel/communicator.hpp"

namespace tessera {

struct Fact {
  std::string name;  // as a user knows it: "version", "OPENBLAS_CORETYPE"
  std::string value;
};

// What differs among the ranks, one text: "version 1.0 on rank 0, 1.1 on ranks 1-3; options … on …". Empty
// where nothing does. facts[r] are rank r's; a name that a rank does not have counts as "(none)".
std::string differing_facts(std::span<const std::vector<Fact>> facts);

// Collective: the same text on all ranks. Costs one exchange of 8 bytes a rank where nothing differs.
std::string gather_differences(Communicator& world, std::span<const Fact> facts);

// Collective. UsageError, the same on all ranks, where a fact differs.
void require_equal_facts(Communicator& world, std::span<const Fact> facts);

}  // namespace tessera
