#include "parallel/message_channel.hpp"

#include <algorithm>
#include <chrono>
#include <deque>
#include <mutex>
#include <thread>

#include "runtime/core/error.hpp"

namespace tessera {
namespace {

class LocalMessageChannel final : public MessageChannel {
 public:
  void send(std::span<const std::byte> bytes, int to, int tag) override {
    TESSERA_CHECK(to == 0 && tag >= 0);
    Message message{0, tag, {bytes.begin(), bytes.end()}};
    const std::lock_guard lock(mutex_);
    messages_.push_back(std::move(message));
  }

  std::optional<Message> poll(int tag) override {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(messages_.begin(), messages_.end(),
                                    [&](const Message& m) { return tag == kAnyTag || m.tag == tag; });
    if (found == messages_.end()) return std::nullopt;
    Message message = std::move(*found);
    messages_.erase(found);
    return message;
  }

 private:
  std::mutex mutex_;
  std::deque<Message> messages_;
};

}  // namespace

MessageChannel::Message MessageChannel::receive(int tag) {
  // From 20 µs, so that an answer that is on its way is not kept waiting, to 1 ms.
  auto pause = std::chrono::microseconds(20);
  for (;;) {
    if (auto message = poll(tag)) return std::move(*message);
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::microseconds(1000));
  }
}

std::unique_ptr<MessageChannel> make_local_message_channel() {
  return std::make_unique<LocalMessageChannel>();
}

}  // namespace tessera
