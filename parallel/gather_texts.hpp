// Texts of any length, from every rank to every rank.
#pragma once

#include <string>
#include <vector>

#include "parallel/communicator.hpp"

namespace tessera {

// Collective. Part r of the result is rank r's text.
std::vector<std::string> all_gather_texts(Communicator& world, const std::string& mine);

}  // namespace tessera
