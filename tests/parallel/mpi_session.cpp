// Agreement on errors, messages between threads, and the session on 1 to 4 ranks.
#include "parallel/mpi_session.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "parallel/agreement.hpp"
#include "runtime/core/host.hpp"
#include "runtime/core/random.hpp"

using namespace tessera;

namespace {

MpiSession start() {
  return MpiSession::start(detect_launch());
}

std::vector<std::byte> bytes_of(std::uint64_t seed, std::size_t count) {
  std::vector<std::byte> bytes(count);
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(hash_counter(seed, 1, i));
  return bytes;
}

template <typename T>
std::vector<std::byte> pack(const T& value) {
  const auto* begin = reinterpret_cast<const std::byte*>(&value);
  return {begin, begin + sizeof value};
}

template <typename T>
T unpack(const std::vector<std::byte>& bytes) {
  REQUIRE(bytes.size() == sizeof(T));
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

constexpr int kRequest = 1;
constexpr int kAnswer = 2;
constexpr int kDone = -1;

}  // namespace

TEST_CASE("the session knows its world") {
  MpiSession session = start();
  CHECK(session.launch().under_launcher);
  CHECK(session.size() == session.launch().expected_ranks);
  CHECK(session.launch().local_size == session.size());
  CHECK(session.launch().local_rank == session.rank());
  const auto world = session.world();
  CHECK(world->size() == session.size());
  CHECK(world->rank() == session.rank());
  CHECK(session.library_version().find(' ') != std::string::npos);
  CHECK(session.library_version().find(',') == std::string::npos);
}

TEST_CASE("run_agreed: nobody fails") {
  MpiSession session = start();
  const auto world = session.world();
  int runs = 0;
  run_agreed(*world, [&] { ++runs; });
  CHECK(runs == 1);
}

TEST_CASE("run_agreed: one rank fails, all throw its error") {
  MpiSession session = start();
  const auto world = session.world();
  for (int culprit = 0; culprit < session.size(); ++culprit) {
    std::string text;
    try {
      run_agreed(*world, [&] {
        if (session.rank() == culprit) throw InputError("a.json: heads: is {}, must be {}", culprit, "{}");
      });
    } catch (const InputError& error) {
      text = error.what();
    }
    const std::string message = "a.json: heads: is " + std::to_string(culprit) + ", must be {}";
    CHECK(text == (session.size() == 1
                       ? message
                       : "rank " + std::to_string(culprit) + " (" + host_name() + "): " + message));
  }
}

TEST_CASE("run_agreed: several fail differently, the lowest rank's error counts") {
  MpiSession session = start();
  const auto world = session.world();
  if (session.size() < 3) return;
  try {
    run_agreed(*world, [&] {
      if (session.rank() == 1) throw std::bad_alloc();
      if (session.rank() == 2) throw UsageError("second");
    });
    FAIL("nothing was thrown");
  } catch (const ResourceError& error) {
    CHECK(std::string(error.what()).find("rank 1 (" + host_name() + "): memory: ") == 0);
  }
}

TEST_CASE("run_agreed: all fail alike, no prefix") {
  MpiSession session = start();
  const auto world = session.world();
  for (const std::string& text : {std::string("--tp 3 does not divide"), std::string()}) {
    try {
      run_agreed(*world, [&] { throw UsageError("{}", text); });
      FAIL("nothing was thrown");
    } catch (const UsageError& error) {
      CHECK(error.what() == text);
    }
  }
  CHECK_THROWS_AS(run_agreed(*world, [] { throw std::runtime_error("from a library"); }), InternalError);
  CHECK_THROWS_AS(run_agreed(*world, [] { throw StopRequested("stopped"); }), StopRequested);
}

TEST_CASE("messages of all sizes arrive whole and in order") {
  MpiSession session = start();
  const auto channel = session.message_channel();
  CHECK_FALSE(channel->poll().has_value());
  session.world()->barrier();  // nobody sends before all have looked
  const int next = (session.rank() + 1) % session.size();
  const std::size_t sizes[] = {0, 1, 1000, 100000, 3000001};
  // Long messages wait for their receiver, which is why a second thread sends.
  std::thread sender([&] {
    for (const std::size_t size : sizes)
      channel->send(bytes_of(static_cast<std::uint64_t>(session.rank()), size), next, 7);
  });
  const int previous = (session.rank() + session.size() - 1) % session.size();
  for (const std::size_t size : sizes) {
    const auto message = channel->receive(7);
    CHECK(message.from == previous);
    CHECK(message.tag == 7);
    CHECK(message.bytes == bytes_of(static_cast<std::uint64_t>(previous), size));
  }
  sender.join();
  session.world()->barrier();
}

TEST_CASE("a queue served by a thread of rank 0 hands out each sample once, while collectives run") {
  MpiSession session = start();
  const auto channel = session.message_channel();
  const auto world = session.world();
  constexpr int kSamples = 100;

  std::thread service;
  std::atomic<int> finished{0};
  if (session.rank() == 0) {
    service = std::thread([&] {
      int next = 0;
      while (finished < session.size()) {
        const auto request = channel->receive(kRequest);
        const int sample = next < kSamples ? next++ : kDone;
        if (sample == kDone) ++finished;
        channel->send(pack(sample), request.from, kAnswer);
      }
    });
  }
  std::vector<std::int64_t> taken(kSamples, 0);
  bool open = true;
  for (int step = 0; step <= kSamples; ++step) {  // the collectives keep all ranks at the same step
    if (open) {
      channel->send({}, 0, kRequest);
      const int sample = unpack<int>(channel->receive(kAnswer).bytes);
      open = sample != kDone;
      if (open) ++taken[static_cast<std::size_t>(sample)];
    }
    std::int64_t sum = 1;
    world->all_reduce_sum(&sum, 1);
    CHECK(sum == session.size());
  }
  CHECK_FALSE(open);
  if (service.joinable()) service.join();
  world->all_reduce_sum(taken.data(), taken.size());
  CHECK(taken == std::vector<std::int64_t>(kSamples, 1));
  CHECK_FALSE(channel->poll().has_value());
}
