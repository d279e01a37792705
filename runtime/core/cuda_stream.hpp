// Owners of streams and events. A kernel is given the view; the stream is never implicit.
#pragma once

#include "runtime/core/device.hpp"

namespace tessera::cuda {

// Makes a device the calling thread's current one while the object lives.
class DeviceScope {
 public:
  explicit DeviceScope(Device device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int previous_ = 0;
  int current_ = 0;
};

// A stream that does not wait for the legacy default stream. Its work is finished before it is destroyed.
class CudaStream {
 public:
  explicit CudaStream(Device device);
  ~CudaStream();
  CudaStream(CudaStream&& other) noexcept;
  CudaStream& operator=(CudaStream&& other) noexcept;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  StreamView view() const { return {device_, native_}; }
  operator StreamView() const { return view(); }
  void synchronize() const;

 private:
  void release() noexcept;

  Device device_;
  void* native_ = nullptr;  // cudaStream_t
};

// Blocks the calling thread until all work of the stream is done; reports what its kernels ran into.
void synchronize(StreamView stream);

enum class EventUse { kOrder, kTiming };  // a timing event costs a little more

class CudaEvent {
 public:
  explicit CudaEvent(Device device, EventUse use = EventUse::kOrder);
  ~CudaEvent();
  CudaEvent(CudaEvent&& other) noexcept;
  CudaEvent& operator=(CudaEvent&& other) noexcept;
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  void record(StreamView stream);
  // While the stream is captured: a node of the graph, so that each replay records the event anew.
  void record_in_graph(StreamView stream);
  void hold(StreamView stream) const;  // later work of the stream waits for what was recorded
  bool done() const;                   // true, too, where nothing was recorded
  void synchronize() const;            // blocks the calling thread
  void* native() const { return native_; }

 private:
  void release() noexcept;

  Device device_;
  void* native_ = nullptr;  // cudaEvent_t
};

// Between two recorded timing events; waits for the last.
double milliseconds_between(const CudaEvent& first, const CudaEvent& last);

}  // namespace tessera::cuda
