// For programs whose every test needs a GPU: without one they say so and exit with 77, which ctest counts as
// skipped.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include "runtime/core/device.hpp"

int main(int argc, char** argv) {
  const tessera::CudaInfo cuda = tessera::query_cuda();
  if (cuda.devices.empty()) {
    std::printf("SKIPPED: no GPU (%s)\n", cuda.problem.c_str());
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
