#include "parallel/watchdog.hpp"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "runtime/core/error.hpp"

namespace tessera {
namespace {

// One write call, past any buffer or lock that a hung thread may hold.
void print_line(const std::string& line) {
  [[maybe_unused]] const auto written = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace

Watchdog::Watchdog(std::chrono::milliseconds timeout, int rank, std::string host)
    : timeout_(timeout), who_(fmt::format("rank {} ({})", rank, host)) {
  beat("start");
  if (timeout_.count() > 0) thread_ = std::thread([this] { watch(); });
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Watchdog::beat(std::string_view operation, int layer, bool waits) {
  // A reader may see the words of two beats mixed. That garbles a name in a message, and happens only when
  // progress is being made.
  std::uint64_t words[kNameWords] = {};
  std::memcpy(words, operation.data(), std::min(operation.size(), sizeof words - 1));
  for (int i = 0; i < kNameWords; ++i) name_[i].store(words[i], std::memory_order_relaxed);
  layer_.store(layer, std::memory_order_relaxed);
  waits_.store(waits, std::memory_order_relaxed);
  beats_.fetch_add(1, std::memory_order_release);
}

std::string Watchdog::operation() const {
  char name[kNameWords * 8];
  for (int i = 0; i < kNameWords; ++i) {
    const std::uint64_t word = name_[i].load(std::memory_order_relaxed);
    std::memcpy(name + 8 * i, &word, sizeof word);
  }
  name[sizeof name - 1] = '\0';
  const int layer = layer_.load(std::memory_order_relaxed);
  return layer < 0 ? std::string(name) : fmt::format("layer {} {}", layer, name);
}

void Watchdog::watch() {
  using std::chrono::duration;
  using std::chrono::milliseconds;
  using Clock = std::chrono::steady_clock;
  const milliseconds tick = std::clamp(timeout_ / 16, milliseconds(5), milliseconds(1000));

  std::uint64_t seen = beats_.load(std::memory_order_acquire);
  Clock::duration idle{0};
  bool reported = false;
  auto before = Clock::now();

  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, tick, [this] { return stop_; })) {
    const auto now = Clock::now();
    // A job that was suspended (SIGSTOP, scontrol suspend) has not hung: a tick never counts for much more
    // than itself.
    const Clock::duration passed = std::min<Clock::duration>(now - before, 2 * tick);
    before = now;
    const std::uint64_t beats = beats_.load(std::memory_order_acquire);
    if (beats != seen || under_way_.load() == 0 || !waits_.load()) {
      seen = beats;
      idle = Clock::duration{0};
      reported = false;
      continue;
    }
    idle += passed;
    const double seconds = duration<double>(idle).count();
    if (idle >= timeout_) {
      print_line(
          fmt::format("{}: no progress for {:.3g} s in {}; ending the job\n", who_, seconds, operation()));
      _exit(static_cast<int>(ExitCode::kPeer));
    }
    if (!reported && idle >= timeout_ / 2) {
      reported = true;
      print_line(fmt::format("{}: no progress for {:.3g} s in {}; the job ends at {:.3g} s (--timeout)\n",
                             who_, seconds, operation(), duration<double>(timeout_).count()));
    }
  }
}

}  // namespace tessera
