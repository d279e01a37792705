// How the parts of the transformer account for their time. Not for others to include.
#pragma once

#include "runtime/model/transformer.hpp"

namespace tessera {

// Charges the time of a scope to (phase, layer, operation), after telling the listener.
struct Transformer::StepTimer {
  StepTimer(Transformer& transformer, Phase phase, int layer, Operation operation)
      : total(transformer.times_.at(phase, layer, operation)) {
    if (transformer.listener_) transformer.listener_(phase, layer, operation);
  }
  ~StepTimer() { total += seconds_since(start); }

  double& total;
  HostClock::time_point start = HostClock::now();
};

}  // namespace tessera
