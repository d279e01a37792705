#include "attention/decode_cuda_launch.cuh"

namespace tessera::cuda {

template void launch_attend<__nv_bfloat16>(const DecodeArgs&, const DecodeConfig&, bool, StreamView);

}  // namespace tessera::cuda
