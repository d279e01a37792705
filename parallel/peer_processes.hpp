// The processes of a group on this machine, so that an error can name a rank that has ended or is stopped:
// what a peer's end looks like from here (a closed socket, silence) does not say whose it was.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/communicator.hpp"

namespace tessera {

class PeerProcesses {
 public:
  PeerProcesses() = default;                           // of nobody
  PeerProcesses(Communicator& group, int world_rank);  // collective

  // "rank 2 (process 4711) has ended, rank 3 (process 4712) is stopped"; empty: all of this machine run. A
  // process may be on its way out when its sockets are closed: waits up to `patience_ms` for one to be gone.
  std::string gone(int patience_ms = 500) const;

 private:
  struct Peer {
    std::int32_t world_rank = 0;
    std::int32_t process = 0;
    std::uint64_t machine = 0;    // hash of its name
    std::uint64_t processes = 0;  // inode of the namespace in which process is counted; 0: unknown
  };
  static std::string gone_now(const std::vector<Peer>& peers);

  std::vector<Peer> near_;  // others on this machine
};

}  // namespace tessera
