#include "parallel/nccl_communicator.hpp"
#include "runtime/core/error.hpp"

namespace tessera::cuda {

NcclType nccl_type_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return NcclType::kF32;
    case DType::kBF16:
      return NcclType::kBF16;
    case DType::kF16:
      return NcclType::kF16;
  }
  throw InternalError("a dtype has no NCCL type");
}

std::size_t size_of(NcclType type) {
  switch (type) {
    case NcclType::kF32:
    case NcclType::kInt32:
      return 4;
    case NcclType::kBF16:
    case NcclType::kF16:
      return 2;
    case NcclType::kInt64:
    case NcclType::kUint64:
      return 8;
    case NcclType::kByte:
      return 1;
  }
  throw InternalError("an NCCL type has no size");
}

}  // namespace tessera::cuda
