// TVM tensors over memory that the engine owns.
#ifndef MINICPMV_ENGINE_TENSORS_H_
#define MINICPMV_ENGINE_TENSORS_H_

#include <tvm/ffi/container/tensor.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime/engine/weights_file.h"

namespace minicpmv {

using tvm::ffi::Tensor;

inline constexpr DLDataType kFloat32{kDLFloat, 32, 1};
inline constexpr DLDataType kFloat16{kDLFloat, 16, 1};
inline constexpr DLDataType kInt32{kDLInt, 32, 1};
inline constexpr DLDataType kInt8{kDLInt, 8, 1};
inline constexpr DLDevice kCpu{kDLCPU, 0};

// Wraps memory in a tensor without taking ownership; the memory must outlive it. Blocks require an
// alignment of kWeightAlignment bytes.
Tensor Borrow(void* data, const std::vector<int64_t>& shape, DLDataType dtype);

// The same for a weight in a mapped file, which is read-only.
Tensor Borrow(const TensorView& weight);

// Zeroed memory for tensors, aligned to kWeightAlignment bytes. The system commits pages when they
// are first written.
class AlignedBuffer {
 public:
  // Throws EngineError (out_of_memory).
  explicit AlignedBuffer(size_t size);  // bytes
  ~AlignedBuffer();

  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  float* floats() const { return static_cast<float*>(data_); }
  size_t size() const { return size_; }

 private:
  void* data_;
  size_t size_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_TENSORS_H_
