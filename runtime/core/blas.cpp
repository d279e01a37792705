#include "runtime/core/blas.hpp"

#include <cblas.h>
#include <fmt/format.h>

#include <string_view>

namespace tessera {

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
