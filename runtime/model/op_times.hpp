// Where the time of a sample went on this rank: seconds by phase, layer and operation.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <vector>

#include "runtime/core/operation.hpp"

namespace tessera {

// (Ph, L + 1, O) seconds; row 0 is "layer −1": embedding and logits.
class OpTimes {
 public:
  OpTimes() = default;
  explicit OpTimes(int layers) : layers_(layers), seconds_(kPhases * (layers + 1) * kOperations, 0.0) {}

  double& at(Phase phase, int layer, Operation operation) {
    return seconds_[(static_cast<std::size_t>(phase) * (layers_ + 1) + (layer + 1)) * kOperations +
                    static_cast<std::size_t>(operation)];
  }
  const std::vector<double>& values() const { return seconds_; }
  void add_scaled(const OpTimes& other, double factor) {
    for (std::size_t i = 0; i < seconds_.size(); ++i) seconds_[i] += factor * other.seconds_[i];
  }
  void clear() { seconds_.assign(seconds_.size(), 0.0); }

 private:
  int layers_ = 0;
  std::vector<double> seconds_;
};

using HostClock = std::chrono::steady_clock;

inline double seconds_since(HostClock::time_point start) {
  return std::chrono::duration<double>(HostClock::now() - start).count();
}

}  // namespace tessera
