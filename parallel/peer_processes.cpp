#include "parallel/peer_processes.hpp"

#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <thread>

#include "runtime/core/host.hpp"

namespace tessera {
namespace {

std::uint64_t process_namespace() {
  struct stat facts {};
  return stat("/proc/self/ns/pid", &facts) == 0 ? static_cast<std::uint64_t>(facts.st_ino) : 0;
}

// The state letter of /proc/PID/stat, which stands behind the name in brackets; 0: there is no such process.
char state_of(std::int32_t process) {
  std::ifstream file(fmt::format("/proc/{}/stat", process));
  std::string text;
  if (!std::getline(file, text)) return 0;
  const std::size_t end = text.rfind(')');
  return end != std::string::npos && end + 2 < text.size() ? text[end + 2] : '?';
}

}  // namespace

PeerProcesses::PeerProcesses(Communicator& group, int world_rank) {
  const Peer self{world_rank, static_cast<std::int32_t>(getpid()), std::hash<std::string>{}(host_name()),
                  process_namespace()};
  std::vector<Peer> all(static_cast<std::size_t>(group.size()));
  group.all_gather(&self, sizeof self, all.data());
  for (const Peer& peer : all) {
    const bool is_near = peer.machine == self.machine && peer.processes == self.processes;
    if (is_near && peer.processes != 0 && peer.process != self.process) near_.push_back(peer);
  }
}

std::string PeerProcesses::gone(int patience_ms) const {
  constexpr int kStepMs = 20;
  for (int waited = 0;; waited += kStepMs) {
    std::string text = gone_now(near_);
    if (!text.empty() || waited >= patience_ms || near_.empty()) return text;
    std::this_thread::sleep_for(std::chrono::milliseconds(kStepMs));
  }
}

std::string PeerProcesses::gone_now(const std::vector<Peer>& peers) {
  std::string text;
  for (const Peer& peer : peers) {
    const char state = state_of(peer.process);
    const bool has_ended = state == 0 || state == 'Z' || state == 'X';
    const bool is_stopped = state == 'T' || state == 't';
    if (!has_ended && !is_stopped) continue;
    text += fmt::format("{}rank {} (process {}) {}", text.empty() ? "" : ", ", peer.world_rank, peer.process,
                        has_ended ? "has ended" : "is stopped");
  }
  return text;
}

}  // namespace tessera
