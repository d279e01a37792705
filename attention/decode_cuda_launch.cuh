// The launcher of attend_kernel, for the two files that instantiate it.
#pragma once

#include "attention/decode_cuda_kernel.cuh"
#include "runtime/core/cuda_launch.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {

template <class T, int kHeadDim, int kTiles, int kWarps, int kStages>
bool launch_if(const DecodeArgs& args, const DecodeConfig& config, bool overlaps_previous,
               StreamView stream) {
  const DecodeProblem& problem = args.problem;
  const int tiles = problem.heads_a_list() <= kHeadTile ? 1 : 2;
  if (problem.head_dim != kHeadDim || tiles != kTiles || config.warps != kWarps || config.stages != kStages) {
    return false;
  }
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(config.ctas));
  shape.block = dim3(kWarps * 32);
  shape.shared_bytes = DecodeShape<T, kHeadDim, kTiles, kWarps, kStages>::kSharedBytes;
  shape.overlaps_previous = overlaps_previous;
  launch(attend_kernel<T, kHeadDim, kTiles, kWarps, kStages>, shape, stream, args);
  return true;
}

template <class T>
void launch_attend(const DecodeArgs& args, const DecodeConfig& config, bool overlaps_previous,
                   StreamView stream) {
  const auto with_tiles = [&]<int kTiles>() {
    return launch_if<T, 64, kTiles, 4, 6>(args, config, overlaps_previous, stream) ||
           launch_if<T, 128, kTiles, 4, 6>(args, config, overlaps_previous, stream) ||
           launch_if<T, 128, kTiles, 4, 3>(args, config, overlaps_previous, stream) ||
           launch_if<T, 128, kTiles, 8, 3>(args, config, overlaps_previous, stream) ||
           launch_if<T, 256, kTiles, 4, 3>(args, config, overlaps_previous, stream);
  };
  TESSERA_CHECK(with_tiles.template operator()<1>() || with_tiles.template operator()<2>());
}

}  // namespace tessera::cuda
