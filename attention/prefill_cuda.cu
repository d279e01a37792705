#include "attention/prefill_cuda.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "runtime/core/cuda_check.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {

template <typename T>
void prefill_by_head_dim(const PrefillParams& p);  // prefill_cuda_bf16.cu, prefill_cuda_f16.cu
extern template void prefill_by_head_dim<__nv_bfloat16>(const PrefillParams& p);
extern template void prefill_by_head_dim<__half>(const PrefillParams& p);

bool check_prefill(const PrefillParams& p) {
  constexpr std::int64_t kMostTokens = 1 << 29;  // positions and their differences fit in int
  TESSERA_CHECK(p.kv.dtype == DType::kBF16 || p.kv.dtype == DType::kF16);
  TESSERA_CHECK(p.kv.head_dim == 64 || p.kv.head_dim == 128 || p.kv.head_dim == 256);
  TESSERA_CHECK(p.kv.kv_heads > 0 && p.heads % p.kv.kv_heads == 0);
  TESSERA_CHECK(p.kv.rows_of_head == nullptr);
  TESSERA_CHECK(p.kv.slot_bytes == 4ULL * kBlockTokens * static_cast<std::size_t>(p.kv.head_dim));
  TESSERA_CHECK(p.tokens >= 0 && p.tokens <= kMostTokens && p.kv.length >= 0 && p.kv.length <= kMostTokens);
  TESSERA_CHECK(p.q_row_stride % 8 == 0 &&
                p.q_row_stride >= static_cast<std::int64_t>(p.heads) * p.kv.head_dim);
  TESSERA_CHECK(p.pool_slots > 0 && p.scale > 0 && p.window >= 0);
  TESSERA_CHECK(p.tile_keys == 0 || (p.tile_keys == 192 && p.kv.head_dim == 128));
  return p.tokens > 0 && p.heads > 0;
}

void prefill_attention_wgmma(const PrefillParams& p) {
  if (!check_prefill(p)) return;
  TESSERA_CHECK(p.counters != nullptr);
  if (p.kv.dtype == DType::kBF16) {
    prefill_by_head_dim<__nv_bfloat16>(p);
  } else {
    prefill_by_head_dim<__half>(p);
  }
}

void prefill_attention(const PrefillParams& p) {
  int major = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, p.stream.device.ordinal));
  if (major == 9) {
    prefill_attention_wgmma(p);
  } else {
    prefill_attention_mma(p);
  }
}

}  // namespace tessera::cuda
