#include "attention/prefill_dispatch.cuh"

namespace tessera::cuda {

template void prefill_by_head_dim<__nv_bfloat16>(const PrefillParams& p);

}  // namespace tessera::cuda
