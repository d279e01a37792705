#include <doctest/doctest.h>

#include "jobs/sample_service.hpp"

using namespace tessera;

namespace {

// What the callbacks saw, in a world of one.
struct Seen {
  std::vector<std::int64_t> recorded;
  std::atomic<bool> stop{false};

  SampleService::Callbacks callbacks() {
    SampleService::Callbacks all;
    all.record = [this](Completion completion) { recorded.push_back(completion.id); };
    all.idle = [] {};
    all.stop_requested = [this] { return stop.load(); };
    all.failed = [](std::exception_ptr) { FAIL("the service failed"); };
    return all;
  }
};

std::vector<Request> three_requests() {
  return {{7, {1, 2, 3}, 4}, {5, {4}, 1}, {9, {5, 6}, 2}};
}

Completion completion_of(const Request& request) {
  Completion completion;
  completion.id = request.id;
  return completion;
}

}  // namespace

TEST_CASE("requests come in the order given, and what is finished is recorded") {
  const auto channel = make_local_message_channel();
  Seen seen;
  SampleService service(*channel, three_requests(), 1, seen.callbacks());
  ServedRequests source(*channel, [] { return false; });
  std::vector<std::int64_t> ids;
  while (const auto request = source.next()) {
    ids.push_back(request->id);
    if (request->id == 9) {
      CHECK(request->tokens == std::vector<std::int32_t>{5, 6});
      CHECK(request->max_output == 2);
    }
    source.finished(completion_of(*request));
  }
  CHECK_FALSE(source.stop_requested());
  source.leave();
  service.wait();
  CHECK(ids == std::vector<std::int64_t>{7, 5, 9});
  CHECK(seen.recorded == ids);
}

TEST_CASE("a leader that asks while the job stops is told to stop") {
  const auto channel = make_local_message_channel();
  Seen seen;
  SampleService service(*channel, three_requests(), 1, seen.callbacks());
  ServedRequests source(*channel, [] { return false; });
  CHECK(source.next().has_value());
  seen.stop = true;
  CHECK_FALSE(source.next().has_value());
  CHECK(source.stop_requested());
  source.leave();
  service.wait();
}

// As when rank 0's own work throws: its leader never says that it is done.
TEST_CASE("a service that is destroyed does not wait for its leaders") {
  const auto channel = make_local_message_channel();
  Seen seen;
  {
    const SampleService service(*channel, three_requests(), 2, seen.callbacks());
    ServedRequests source(*channel, [] { return false; });
    CHECK(source.next()->id == 7);
  }
  CHECK(seen.recorded.empty());
}
