// Ranks succeed or fail together.
#pragma once

#include <functional>
#include <string>

#include "parallel/communicator.hpp"

namespace tessera {

// All ranks run `work`, then compare. If any rank threw, all throw an error with the code and the message of
// the lowest rank that did, "rank R (host): " in front where there are several ranks; no prefix where all
// failed alike. So every rank exits with the same code, and rank 0 alone prints it.
//
// For work that a rank can leave by itself: reading options and files, checking, allocating. Where `work`
// holds collectives, a rank that throws between them leaves the others waiting: let it report and
// MpiSession::abort. A PeerError is not compared, since the means to do so has failed: it is thrown where it
// arose.
void run_agreed(Communicator& world, const std::function<void()>& work);

// Throws the member of the error family that has this code.
[[noreturn]] void throw_error(int code, const std::string& message);

}  // namespace tessera
