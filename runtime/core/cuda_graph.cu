#include "runtime/core/cuda_graph.hpp"

#include <utility>

#include "runtime/core/cuda_check.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {

CudaGraph::CudaGraph(StreamView stream, const std::function<void()>& work) {
  cudaGraph_t graph = nullptr;
  CUDA_CHECK(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal));
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(native(stream), &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();  // that the capture failed is what is being thrown
    throw;
  }
  CUDA_CHECK(cudaStreamEndCapture(native(stream), &graph));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  CUDA_CHECK(status);
  executable_ = executable;
}

CudaGraph::~CudaGraph() {
  release();
}

CudaGraph::CudaGraph(CudaGraph&& other) noexcept : executable_(std::exchange(other.executable_, nullptr)) {}

CudaGraph& CudaGraph::operator=(CudaGraph&& other) noexcept {
  if (this == &other) return *this;
  release();
  executable_ = std::exchange(other.executable_, nullptr);
  return *this;
}

void CudaGraph::release() noexcept {
  if (executable_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
  executable_ = nullptr;
}

void CudaGraph::launch(StreamView stream) const {
  TESSERA_CHECK(executable_ != nullptr);
  CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), native(stream)));
}

}  // namespace tessera::cuda
