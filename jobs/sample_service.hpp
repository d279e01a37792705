// The queue of samples: rank 0 serves it from a thread of its own, longest first; the leader of each replica
// asks for work and sends back what it finished. Rank 0 records a sample before it counts as done.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "parallel/message_channel.hpp"
#include "runtime/model/engine.hpp"

namespace tessera {

// Rank 0's side. `record` is called once for each finished request, in order of arrival, from the service's
// thread; `idle` between messages (progress, trace at intervals). What either throws ends the service:
// `failed` is called with it.
class SampleService {
 public:
  struct Callbacks {
    std::function<void(Completion)> record;
    std::function<void()> idle;
    std::function<bool()> stop_requested;
    std::function<void(std::exception_ptr)> failed;
  };

  // requests are handed out in the order given, to `leaders` leaders.
  SampleService(MessageChannel& channel, std::vector<Request> requests, int leaders, Callbacks callbacks);
  ~SampleService();  // without wait(): this rank failed, and nobody is left to be served

  void wait();  // until every leader has said that it is done

 private:
  void serve();
  void answer(const MessageChannel::Message& message);

  MessageChannel& channel_;
  std::vector<Request> requests_;
  std::size_t next_ = 0;
  int leaders_left_;
  Callbacks callbacks_;
  std::atomic<bool> abandoned_{false};
  std::thread thread_;
};

// A leader's side.
class ServedRequests : public RequestSource {
 public:
  ServedRequests(MessageChannel& channel, std::function<bool()> stop_requested)
      : channel_(channel), stop_requested_(std::move(stop_requested)) {}

  std::optional<Request> next() override;
  void finished(Completion completion) override;
  bool stop_requested() override { return told_to_stop_ || stop_requested_(); }
  void leave();  // no more questions will come from this leader

 private:
  MessageChannel& channel_;
  std::function<bool()> stop_requested_;
  bool told_to_stop_ = false;
};

}  // namespace tessera
