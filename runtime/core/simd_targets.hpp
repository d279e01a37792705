// Which instruction sets the CPU kernels are compiled for; include before anything of Highway. Left out:
// targets that add nothing to fp32 arithmetic over their neighbour (each costs one more compilation of every
// kernel), and targets whose vectors have no size at compile time, since the kernels keep arrays of vectors.
#pragma once

// clang-format off
#define HWY_DISABLED_TARGETS                                                                              \
  (HWY_SSSE3 | HWY_AVX3_DL | TESSERA_HWY_NEWER_TARGETS | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | \
   HWY_RVV)
// clang-format on

// Zen 4 and Sapphire Rapids are targets of their own since Highway 1.0.5; they run what AVX3 is compiled for.
#include <hwy/detect_targets.h>

#ifndef HWY_AVX3_ZEN4
#define TESSERA_HWY_ZEN4 0
#else
#define TESSERA_HWY_ZEN4 HWY_AVX3_ZEN4
#endif
#ifndef HWY_AVX3_SPR
#define TESSERA_HWY_SPR 0
#else
#define TESSERA_HWY_SPR HWY_AVX3_SPR
#endif
#define TESSERA_HWY_NEWER_TARGETS (TESSERA_HWY_ZEN4 | TESSERA_HWY_SPR)
