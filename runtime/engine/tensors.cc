#include "runtime/engine/tensors.h"

#include <sys/mman.h>

#include <algorithm>
#include <string>

#include "runtime/engine/error.h"

namespace minicpmv {
namespace {

// An allocator for TVM that returns existing memory.
struct BorrowedMemory {
  void* data;

  void AllocData(DLTensor* tensor) { tensor->data = data; }
  void FreeData(DLTensor*) {}
};

DLDataType TypeOf(DType dtype) {
  switch (dtype) {
    case DType::kU8:
      return {kDLUInt, 8, 1};
    case DType::kI8:
      return {kDLInt, 8, 1};
    case DType::kF16:
      return kFloat16;
    case DType::kF32:
      return kFloat32;
  }
  return kFloat32;
}

}  // namespace

Tensor Borrow(void* data, const std::vector<int64_t>& shape, DLDataType dtype) {
  return Tensor::FromNDAlloc(BorrowedMemory{data}, tvm::ffi::ShapeView(shape.data(), shape.size()),
                             dtype, kCpu);
}

Tensor Borrow(const TensorView& weight) {
  return Borrow(const_cast<uint8_t*>(weight.data), weight.shape, TypeOf(weight.dtype));
}

AlignedBuffer::AlignedBuffer(size_t size) : size_(std::max<size_t>(size, 1)) {
  data_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data_ == MAP_FAILED) {
    throw EngineError(error_code::kOutOfMemory,
                      "cannot allocate " + std::to_string(size) + " bytes of memory");
  }
}

AlignedBuffer::~AlignedBuffer() { munmap(data_, size_); }

}  // namespace minicpmv
