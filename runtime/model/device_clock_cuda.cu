#include <algorithm>

#include "runtime/core/error.hpp"
#include "runtime/model/device_clock.hpp"

namespace tessera::cuda {

void DeviceClock::reserve(std::size_t marks) {
  while (events_.size() <= marks) events_.emplace_back(stream_.device, EventUse::kTiming);
}

// At the place of the mark that comes next.
void DeviceClock::record() {
  reserve(marks_.size());
  CudaEvent& event = events_[marks_.size()];
  if (use_ == Use::kInGraph) {
    event.record_in_graph(stream_);
  } else {
    event.record(stream_);
  }
}

void DeviceClock::mark(Phase phase, int layer, Operation operation) {
  push({phase, layer, operation});
}

void DeviceClock::pause() {
  push({Phase::kPrefill, -1, Operation::kEmbed, false});
}

void DeviceClock::push(const Mark& mark) {
  if (running_ && !marks_.empty() && marks_.back() == mark) return;
  TESSERA_CHECK(running_ || marks_.empty());
  record();
  marks_.push_back(mark);
  running_ = true;
}

void DeviceClock::stop() {
  if (!running_) return;
  record();
  running_ = false;
}

void DeviceClock::add_to(OpTimes& times) const {
  TESSERA_CHECK(!running_);
  for (std::size_t i = 0; i < marks_.size(); ++i) {
    const Mark& mark = marks_[i];
    if (!mark.counts) continue;
    times.at(mark.phase, mark.layer, mark.operation) +=
        milliseconds_between(events_[i], events_[i + 1]) * 1e-3;
  }
}

std::size_t DeviceClock::reached() {
  TESSERA_CHECK(use_ == Use::kDirect);
  const std::size_t recorded = marks_.size() + (running_ || marks_.empty() ? 0 : 1);
  while (reached_ < recorded && events_[reached_].done()) ++reached_;
  return reached_;
}

const DeviceClock::Mark* DeviceClock::last_reached() {
  const std::size_t count = std::min(reached(), marks_.size());
  return count == 0 ? nullptr : &marks_[count - 1];
}

std::string DeviceClock::place() {
  const Mark* mark = last_reached();
  if (mark == nullptr) return {};
  if (mark->layer < 0) return fmt::format("{}, {}", name_of(mark->phase), name_of(mark->operation));
  return fmt::format("{}, layer {} {}", name_of(mark->phase), mark->layer, name_of(mark->operation));
}

void DeviceClock::tell_last(const StepListener& listener) {
  if (const Mark* mark = last_reached()) listener(mark->phase, mark->layer, mark->operation);
}

}  // namespace tessera::cuda
