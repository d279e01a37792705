#include "runtime/core/blas.hpp"

#include <cblas.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

namespace tessera {
namespace {

constexpr const char* kCoreVariable = "OPENBLAS_CORETYPE";
constexpr const char* kRestartGuard = "TESSERA_BLAS_RESTARTED";

bool cpu_has_avx512() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

bool runs_avx2_kernels() {
  const std::string_view core = openblas_get_corename();
  return core == "Haswell" || core == "Zen";
}

}  // namespace

bool prefer_best_blas_kernels(char** argv) {
  if (!cpu_has_avx512() || !runs_avx2_kernels()) return true;
  if (std::getenv(kCoreVariable) != nullptr || std::getenv(kRestartGuard) != nullptr) return false;
  if (setenv(kRestartGuard, "1", 1) != 0 || setenv(kCoreVariable, "SKYLAKEX", 1) != 0) return false;
  execv("/proc/self/exe", argv);
  unsetenv(kCoreVariable);  // no restart (for example no /proc): go on with what we have
  return false;
}

std::string blas_description() {
  const std::string_view config =
      openblas_get_config();  // "OpenBLAS 0.3.21 NO_LAPACKE … Haswell MAX_THREADS=64"
  const std::size_t name_end = config.find(' ');
  const std::size_t version_end =
      name_end == std::string_view::npos ? name_end : config.find(' ', name_end + 1);
  return fmt::format("{} ({} kernels)", config.substr(0, version_end), openblas_get_corename());
}

void multiply_in_this_thread(const BlasProduct& p) {
  static const bool single_threaded = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  static_cast<void>(single_threaded);
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<blasint>(p.rows),
              static_cast<blasint>(p.columns), static_cast<blasint>(p.inner), 1.0f, p.x,
              static_cast<blasint>(p.x_stride), p.weight, static_cast<blasint>(p.weight_stride),
              p.accumulate ? 1.0f : 0.0f, p.y, static_cast<blasint>(p.y_stride));
}

}  // namespace tessera
