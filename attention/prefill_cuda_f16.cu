#include "attention/prefill_dispatch.cuh"

namespace tessera::cuda {

template void prefill_by_head_dim<__half>(const PrefillParams& p);

}  // namespace tessera::cuda
