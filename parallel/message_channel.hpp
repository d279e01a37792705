// Point-to-point messages beside the collectives, for the queue of samples that rank 0 serves from a thread
// of its own. Every call may come from any thread. Waiting sleeps in short steps: a service thread costs no
// core, also where there are more ranks than cores.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace tessera {

class MessageChannel {
 public:
  struct Message {
    int from = 0;
    int tag = 0;
    std::vector<std::byte> bytes;
  };
  static constexpr int kAnyTag = -1;

  virtual ~MessageChannel() = default;
  MessageChannel() = default;
  MessageChannel(const MessageChannel&) = delete;
  MessageChannel& operator=(const MessageChannel&) = delete;

  // tag: 0 … 32767. Returns when the bytes may be reused; a rank may send to itself. Messages from one rank
  // with one tag arrive in order. At most 1 GiB. PeerError when the peer is gone.
  virtual void send(std::span<const std::byte> bytes, int to, int tag) = 0;
  // The next message with this tag that has arrived, if any. Threads that share a channel take different
  // tags.
  virtual std::optional<Message> poll(int tag = kAnyTag) = 0;

  Message receive(int tag = kAnyTag);  // waits
};

std::unique_ptr<MessageChannel> make_local_message_channel();  // a world of one: a queue

}  // namespace tessera
