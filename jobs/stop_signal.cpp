#include "jobs/stop_signal.hpp"

#include <atomic>
#include <csignal>
#include <initializer_list>

namespace tessera {
namespace {

// A signal handler can reach nothing else: the one variable of the program that is not handed from caller to
// callee.
std::atomic<bool> stop_flag{false};
static_assert(std::atomic<bool>::is_always_lock_free);

void on_stop_signal(int) {
  stop_flag.store(true);
}

}  // namespace

void install_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_stop_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (int signal : {SIGTERM, SIGINT, SIGUSR1}) sigaction(signal, &action, nullptr);
}

bool stop_signalled() {
  return stop_flag.load();
}

}  // namespace tessera
