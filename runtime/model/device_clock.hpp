// Device time by phase, layer and operation, from events between the kernels of one stream.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "runtime/core/cuda_stream.hpp"
#include "runtime/model/language_model.hpp"
#include "runtime/model/op_times.hpp"

namespace tessera::cuda {

class DeviceClock {
 public:
  // in_graph: marks are made while a graph is captured, and every replay fills them again.
  enum class Use { kDirect, kInGraph };
  explicit DeviceClock(StreamView stream, Use use = Use::kDirect) : stream_(stream), use_(use) {}

  void clear() {
    marks_.clear();
    running_ = false;
    reached_ = 0;
  }
  void reserve(std::size_t marks);  // events for so many marks: none are made while a graph is captured
  // What follows in the stream is charged to this, until the next mark. The same again is no mark.
  void mark(Phase phase, int layer, Operation operation);
  // What follows is charged to nothing, until the next mark.
  void pause();
  void stop();
  // Adds the time between marks to `times`. Waits for the last mark.
  void add_to(OpTimes& times) const;

  // For marks that are made directly: how many the stream has come to, its end included; no wait.
  std::size_t reached();
  // Of the last that it has come to: "prefill, layer 3 mlp"; empty: of none.
  std::string place();
  void tell_last(const StepListener& listener);

 private:
  struct Mark {
    Phase phase;
    int layer;
    Operation operation;
    bool counts = true;
    bool operator==(const Mark&) const = default;
  };
  void record();
  void push(const Mark& mark);
  const Mark* last_reached();

  StreamView stream_;
  Use use_;
  bool running_ = false;
  std::size_t reached_ = 0;
  std::vector<Mark> marks_;
  std::vector<CudaEvent> events_;  // one at each mark, and one at the end; only grows
};

}  // namespace tessera::cuda
