#include "attention/sparse_prefill_dispatch.cuh"

namespace tessera::cuda {

template void sparse_prefill_by_head_dim<__nv_bfloat16, true>(const ListArguments& a, const ListMaps& maps,
                                                              int head_dim, int rows_per_block,
                                                              int multiprocessors, StreamView stream);

}  // namespace tessera::cuda
