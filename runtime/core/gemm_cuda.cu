#include <cublasLt.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "runtime/core/cuda_check.hpp"
#include "runtime/core/cuda_stream.hpp"
#include "runtime/core/device_gemm.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;  // what NVIDIA recommends for Hopper

[[noreturn]] void throw_cublas_error(cublasStatus_t status, const char* call, int line) {
  const char* words = cublasLtGetStatusString(status);
  if (status == CUBLAS_STATUS_ALLOC_FAILED) {
    throw ResourceError("cuBLASLt: {}: {} ({}:{}); use more ranks or a smaller --batch", call, words,
                        __FILE__, line);
  }
  throw InternalError("cuBLASLt: {}: {} at {}:{}", call, words, __FILE__, line);
}

#define CUBLAS_CHECK(call)                                                                            \
  do {                                                                                                \
    const cublasStatus_t tessera_status = (call);                                                     \
    if (tessera_status != CUBLAS_STATUS_SUCCESS) throw_cublas_error(tessera_status, #call, __LINE__); \
  } while (false)

template <typename Handle, cublasStatus_t (*kDestroy)(Handle)>
struct Destroyer {
  using pointer = Handle;
  void operator()(Handle handle) const { kDestroy(handle); }
};
template <typename Handle, cublasStatus_t (*kDestroy)(Handle)>
using Owner = std::unique_ptr<Handle, Destroyer<Handle, kDestroy>>;
using Library = Owner<cublasLtHandle_t, cublasLtDestroy>;
using Description = Owner<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owner<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owner<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

cudaDataType_t library_type(DType dtype) {
  return dtype == DType::kBF16 ? CUDA_R_16BF : dtype == DType::kF16 ? CUDA_R_16F : CUDA_R_32F;
}

Layout make_layout(DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&layout, library_type(dtype), static_cast<std::uint64_t>(rows),
                                          static_cast<std::uint64_t>(columns), stride));
  return Layout(layout);
}

// Bytes that p is a multiple of, at most 256: what the library may count on.
std::uint32_t alignment_of(const void* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p) | 256;
  return static_cast<std::uint32_t>(address & (~address + 1));
}

// What is asked: all that the library's choice may depend on.
struct Problem {
  std::int64_t rows, inner, columns, x_stride, weight_stride, y_stride;
  DType dtype, y_dtype;
  bool bias, accumulate;
  std::uint32_t x_alignment, weight_alignment, y_alignment;

  auto key() const {
    return std::tie(rows, inner, columns, x_stride, weight_stride, y_stride, dtype, y_dtype, bias, accumulate,
                    x_alignment, weight_alignment, y_alignment);
  }
  bool operator<(const Problem& other) const { return key() < other.key(); }
};

Problem problem_of(const LinearParams& p) {
  return {.rows = p.rows,
          .inner = p.inner,
          .columns = p.columns,
          .x_stride = p.x_stride == 0 ? p.inner : p.x_stride,
          .weight_stride = p.weight_stride == 0 ? p.inner : p.weight_stride,
          .y_stride = p.y_stride == 0 ? p.columns : p.y_stride,
          .dtype = p.dtype,
          .y_dtype = p.y_dtype,
          .bias = p.bias != nullptr,
          .accumulate = p.accumulate,
          .x_alignment = alignment_of(p.x),
          .weight_alignment = alignment_of(p.weight),
          .y_alignment = alignment_of(p.y)};
}

// How it is done. The library thinks in columns: yᵀ (columns, rows) = Wᵀᵀ xᵀ, where row-major W is its Wᵀ.
struct Plan {
  Description description;
  Layout weight, x, y;
  cublasLtMatmulAlgo_t algorithm;
};

template <typename Value>
void set(const Description& description, cublasLtMatmulDescAttributes_t attribute, const Value& value) {
  CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(description.get(), attribute, &value, sizeof value));
}

template <typename Value>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute, const Value& value) {
  CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value));
}

Plan make_plan(cublasLtHandle_t library, const Problem& problem) {
  Plan plan;
  cublasLtMatmulDesc_t description = nullptr;
  CUBLAS_CHECK(cublasLtMatmulDescCreate(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  plan.description.reset(description);
  set(plan.description, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  set(plan.description, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  if (problem.bias) {
    set(plan.description, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(plan.description, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, library_type(problem.dtype));
  }
  plan.weight = make_layout(problem.dtype, problem.inner, problem.columns, problem.weight_stride);
  plan.x = make_layout(problem.dtype, problem.inner, problem.rows, problem.x_stride);
  plan.y = make_layout(problem.y_dtype, problem.columns, problem.rows, problem.y_stride);

  cublasLtMatmulPreference_t made = nullptr;
  CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&made));
  const Preference preference(made);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{kWorkspaceBytes});
  // Parts of a split inner dimension are added in fp32, never in y itself.
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, problem.weight_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, problem.x_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, problem.y_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, problem.y_alignment);

  cublasLtMatmulHeuristicResult_t result = {};
  int found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(library, plan.description.get(), plan.weight.get(), plan.x.get(),
                                     plan.y.get(), plan.y.get(), preference.get(), 1, &result, &found);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || (status == CUBLAS_STATUS_SUCCESS && found == 0)) {
    throw InternalError("cuBLASLt has no kernel for y ({}, {}) = x ({}, {}) Wᵀ, strides {} {} {}, bias {}",
                        problem.rows, problem.columns, problem.rows, problem.inner, problem.y_stride,
                        problem.x_stride, problem.weight_stride, problem.bias);
  }
  CUBLAS_CHECK(status);
  plan.algorithm = result.algo;
  return plan;
}

}  // namespace

struct DeviceGemm::Impl {
  explicit Impl(StreamPool& pool) : stream(pool.stream()), workspace(pool.take(kWorkspaceBytes)) {
    const DeviceScope scope(stream.device);
    cublasLtHandle_t handle = nullptr;
    CUBLAS_CHECK(cublasLtCreate(&handle));
    library.reset(handle);
  }

  StreamView stream;
  StreamPool::Block workspace;
  Library library;
  std::map<Problem, Plan> plans;
};

DeviceGemm::DeviceGemm(StreamPool& pool) : impl_(std::make_unique<Impl>(pool)) {}

DeviceGemm::~DeviceGemm() = default;

void DeviceGemm::linear(const LinearParams& p) {
  if (takes_few_rows(p)) {
    linear_few_rows(p, impl_->stream);
  } else {
    linear_by_library(p);
  }
}

void DeviceGemm::linear_by_library(const LinearParams& p) {
  if (p.rows == 0 || p.columns == 0) return;
  TESSERA_CHECK(p.inner > 0 && p.dtype != DType::kF32);
  TESSERA_CHECK(p.y_dtype == p.dtype || (p.y_dtype == DType::kF32 && p.bias == nullptr));
  const Problem problem = problem_of(p);
  auto found = impl_->plans.find(problem);
  if (found == impl_->plans.end()) {
    found = impl_->plans.emplace(problem, make_plan(impl_->library.get(), problem)).first;
  }
  const Plan& plan = found->second;
  if (problem.bias) set(plan.description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  const float one = 1, kept = p.accumulate ? 1.0f : 0.0f;
  CUBLAS_CHECK(cublasLtMatmul(impl_->library.get(), plan.description.get(), &one, p.weight, plan.weight.get(),
                              p.x, plan.x.get(), &kept, p.y, plan.y.get(), p.y, plan.y.get(), &plan.algorithm,
                              impl_->workspace.data(), kWorkspaceBytes, native(impl_->stream)));
}

std::int64_t DeviceGemm::problems() const {
  return static_cast<std::int64_t>(impl_->plans.size());
}

std::string DeviceGemm::library_version() {
  const std::size_t version = cublasLtGetVersion();
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

}  // namespace tessera::cuda
