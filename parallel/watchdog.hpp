// Ends a job that hangs. A rank whose peer is gone may wait in MPI or CUDA for ever, so the watchdog is a
// thread that calls neither: when the work loop gives no sign for the timeout it prints one line and ends the
// process with exit code 5, upon which mpirun ends the others.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

namespace tessera {

class Watchdog {
 public:
  // timeout: zero or less watches nothing. Reports softly once at half of it.
  Watchdog(std::chrono::milliseconds timeout, int rank, std::string host);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // Time counts only while work is under way: hold one of these around it. They nest.
  class Work {
   public:
    explicit Work(Watchdog& watchdog) : watchdog_(&watchdog) {
      watchdog.beats_.fetch_add(1, std::memory_order_relaxed);
      watchdog.under_way_.fetch_add(1);
    }
    ~Work() { watchdog_->under_way_.fetch_sub(1); }
    Work(const Work&) = delete;
    Work& operator=(const Work&) = delete;

   private:
    Watchdog* watchdog_;
  };
  [[nodiscard]] Work work(std::string_view operation, int layer = -1) {
    beat(operation, layer);
    return Work(*this);
  }

  // Progress: `operation` begins now. Prints as "layer 3 attend", or without the layer where it is negative.
  // Without `waits` the operation needs no other rank: it may take as long as it needs (attention of a long
  // prompt on few cores takes hours). A few relaxed stores; the first 55 bytes of the name are kept. From any
  // thread.
  void beat(std::string_view operation, int layer = -1, bool waits = true);

 private:
  static constexpr int kNameWords = 7;

  void watch();
  std::string operation() const;

  std::chrono::milliseconds timeout_;
  std::string who_;  // "rank 2 (node17)"
  std::atomic<std::uint64_t> beats_{0};
  std::atomic<int> under_way_{0};
  std::atomic<int> layer_{-1};
  std::atomic<bool> waits_{true};
  std::array<std::atomic<std::uint64_t>, kNameWords> name_{};  // bytes of the operation, zero-terminated
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace tessera
