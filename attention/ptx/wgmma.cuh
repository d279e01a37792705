// Matrix products of a warpgroup (wgmma, sm_90a): D (64, N) fp32 += A (64, 16) · B (16, N), operands bf16 or
// fp16. B lies in shared memory, A in shared memory (SS) or in registers (RS), D in registers.
//
// Fragments, for thread t of the 128: warp w = t / 32, row r = 16w + t % 32 / 4, q = t % 4.
//   D[4j + e]: row r + 8(e / 2), column 8j + 2q + e % 2
//   A: four words of two elements; word i holds row r + 8(i % 2), columns 8(i / 2) + 2q and the next
// so that D of one product, rounded and packed pairwise, is A of the next: word i of k-step s is D[8s + 2i],
// and the next.
//
// Products are asynchronous. Between issue and wait their registers belong to the tensor core: call
// wgmma_fence() before the first product after registers were written, fence_registers() on what was in
// flight right after the wait, so that the compiler moves no use of it in front.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace tessera::cuda::ptx {

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most kPending of the last committed groups are unfinished.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
template <int kCount>
__device__ __forceinline__ void fence_registers(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void fence_registers(std::uint32_t (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(values[i])::"memory");
}

// Descriptor of an operand in shared memory under the 128-byte swizzle, as TMA writes boxes of 64 channels:
// rows of 128 bytes, groups of 8 rows (1024 bytes) one after the other. PTX ISA, "Matrix Descriptor Format".
//   rows are the M or N index, channels the k index ("K-major"): group_bytes is not used
//   rows are the k index, channels the N index ("MN-major", kTransposed): group_bytes between groups of 64
//   channels
// eight_rows_bytes: from a group of 8 rows to the next.
// The start may be moved by multiples of 32 bytes along the channels (a k-step of 16 in K-major), and of
// 16 rows (a k-step in MN-major).
__device__ __forceinline__ std::uint64_t swizzled_descriptor(std::uint32_t address, std::uint32_t group_bytes,
                                                             std::uint32_t eight_rows_bytes = 1024) {
  constexpr std::uint64_t kSwizzle128 = 1;
  return (std::uint64_t{address & 0x3FFFF} >> 4) | (std::uint64_t{group_bytes >> 4} << 16) |
         (std::uint64_t{eight_rows_bytes >> 4} << 32) | (kSwizzle128 << 62);
}

// One A fragment (64, 16) of a warpgroup from a tile that TMA wrote with the 128-byte swizzle: rows of 64
// channels; step: which 16 of them. address: of the tile.
__device__ __forceinline__ void load_fragment(std::uint32_t (&a)[4], std::uint32_t address, int step) {
  const std::uint32_t lane = threadIdx.x % 32;
  const std::uint32_t row = threadIdx.x % 128 / 32 * 16 + lane % 16;
  const std::uint32_t piece = (2 * step + lane / 16) ^ (row % 8);  // of 16 bytes
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(address + row * 128 + piece * 16)
               : "memory");
}

// clang-format off
#define TESSERA_REGS_0 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TESSERA_REGS_32 \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TESSERA_REGS_32_TO_47 \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define TESSERA_REGS_64 \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define TESSERA_REGS_96 \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define TESSERA_F8(d, i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define TESSERA_F32(d, i) TESSERA_F8(d, i), TESSERA_F8(d, i + 8), TESSERA_F8(d, i + 16), TESSERA_F8(d, i + 24)
// a, b, p: operand numbers of A's first register or descriptor, of B's descriptor and of the accumulate flag.
#define TESSERA_WGMMA_SS(n, type, a, b, p) \
  asm volatile("{\n.reg .pred acc;\nsetp.ne.b32 acc, %" p ", 0;\n" \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" TESSERA_REGS_N##n "}, %" a ", %" b ", acc, 1, 1, 0, 0;\n}\n" \
               : TESSERA_OUT_##n : "l"(a_descriptor), "l"(b_descriptor), "r"(accumulate))
#define TESSERA_WGMMA_RS(n, type, a0, a1, a2, a3, b, p, t) \
  asm volatile("{\n.reg .pred acc;\nsetp.ne.b32 acc, %" p ", 0;\n" \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" TESSERA_REGS_N##n "}, {%" a0 ", %" a1 ", %" a2 ", %" a3 "}, %" b ", acc, 1, 1, %" t ";\n}\n" \
               : TESSERA_OUT_##n : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_descriptor), "r"(accumulate), "n"(kTransposed ? 1 : 0))
#define TESSERA_BY_TYPE(form, n, ...) \
  if constexpr (std::is_same_v<T, __nv_bfloat16>) { form(n, "bf16", __VA_ARGS__); } else { form(n, "f16", __VA_ARGS__); }
#define TESSERA_OUT_64 TESSERA_F32(d, 0)
#define TESSERA_OUT_96 TESSERA_F32(d, 0), TESSERA_F8(d, 32), TESSERA_F8(d, 40)
#define TESSERA_OUT_128 TESSERA_F32(d, 0), TESSERA_F32(d, 32)
#define TESSERA_OUT_192 TESSERA_F32(d, 0), TESSERA_F32(d, 32), TESSERA_F32(d, 64)
#define TESSERA_OUT_256 TESSERA_F32(d, 0), TESSERA_F32(d, 32), TESSERA_F32(d, 64), TESSERA_F32(d, 96)
#define TESSERA_REGS_N64 TESSERA_REGS_0
#define TESSERA_REGS_N96 TESSERA_REGS_0 ", " TESSERA_REGS_32_TO_47
#define TESSERA_REGS_N128 TESSERA_REGS_0 ", " TESSERA_REGS_32
#define TESSERA_REGS_N192 TESSERA_REGS_0 ", " TESSERA_REGS_32 ", " TESSERA_REGS_64
#define TESSERA_REGS_N256 TESSERA_REGS_0 ", " TESSERA_REGS_32 ", " TESSERA_REGS_64 ", " TESSERA_REGS_96
// clang-format on

// D (64, N) = A · Bᵀ: A (64, 16) and B (N, 16) K-major in shared memory. accumulate = 0 overwrites D.
template <typename T, int kN>
__device__ __forceinline__ void wgmma_ss(float (&d)[kN / 2], std::uint64_t a_descriptor,
                                         std::uint64_t b_descriptor, int accumulate) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
  static_assert(kN == 64 || kN == 96 || kN == 128 || kN == 192);
  if constexpr (kN == 64) {
    TESSERA_BY_TYPE(TESSERA_WGMMA_SS, 64, "32", "33", "34")
  } else if constexpr (kN == 96) {
    TESSERA_BY_TYPE(TESSERA_WGMMA_SS, 96, "48", "49", "50")
  } else if constexpr (kN == 128) {
    TESSERA_BY_TYPE(TESSERA_WGMMA_SS, 128, "64", "65", "66")
  } else {
    TESSERA_BY_TYPE(TESSERA_WGMMA_SS, 192, "96", "97", "98")
  }
}

// D (64, N) += A · B: A in registers. kTransposed: B (16, N) MN-major in shared memory; else Bᵀ (N, 16)
// K-major.
template <typename T, int kN, bool kTransposed>
__device__ __forceinline__ void wgmma_rs(float (&d)[kN / 2], const std::uint32_t* a,
                                         std::uint64_t b_descriptor, int accumulate) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
  static_assert(kN == 64 || kN == 96 || kN == 128 || kN == 192 || kN == 256);
  if constexpr (kN == 64) {
    TESSERA_BY_TYPE(TESSERA_WGMMA_RS, 64, "32", "33", "34", "35", "36", "37", "38")
  } else if constexpr (kN == 96) {
    TESSERA_BY_TYPE(TESSERA_WGMMA_RS, 96, "48", "49", "50", "51", "52", "53", "54")
  } else if constexpr (kN == 128) {
    TESSERA_BY_TYPE(TESSERA_WGMMA_RS, 128, "64", "65", "66", "67", "68", "69", "70")
  } else if constexpr (kN == 192) {
    TESSERA_BY_TYPE(TESSERA_WGMMA_RS, 192, "96", "97", "98", "99", "100", "101", "102")
  } else {
    TESSERA_BY_TYPE(TESSERA_WGMMA_RS, 256, "128", "129", "130", "131", "132", "133", "134")
  }
}

#undef TESSERA_REGS_0
#undef TESSERA_REGS_32
#undef TESSERA_REGS_32_TO_47
#undef TESSERA_REGS_64
#undef TESSERA_REGS_96
#undef TESSERA_F8
#undef TESSERA_F32
#undef TESSERA_WGMMA_SS
#undef TESSERA_WGMMA_RS
#undef TESSERA_BY_TYPE
#undef TESSERA_OUT_64
#undef TESSERA_OUT_96
#undef TESSERA_OUT_128
#undef TESSERA_OUT_192
#undef TESSERA_OUT_256
#undef TESSERA_REGS_N64
#undef TESSERA_REGS_N96
#undef TESSERA_REGS_N128
#undef TESSERA_REGS_N192
#undef TESSERA_REGS_N256

}  // namespace tessera::cuda::ptx
