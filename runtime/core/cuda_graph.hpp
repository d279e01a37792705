// Work of a stream captured once and replayed as one launch. Needs no CUDA header.
#pragma once

#include <functional>

#include "runtime/core/device.hpp"

namespace tessera::cuda {

class CudaGraph {
 public:
  CudaGraph() = default;  // empty: nothing was captured
  // What `work` puts into the stream is captured, and does not run. It may not wait for the device, nor
  // allocate; every address that it uses must outlive the graph.
  CudaGraph(StreamView stream, const std::function<void()>& work);
  ~CudaGraph();
  CudaGraph(CudaGraph&& other) noexcept;
  CudaGraph& operator=(CudaGraph&& other) noexcept;
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  explicit operator bool() const { return executable_ != nullptr; }
  void launch(StreamView stream) const;

 private:
  void release() noexcept;

  void* executable_ = nullptr;  // cudaGraphExec_t
};

}  // namespace tessera::cuda
