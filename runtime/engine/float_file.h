// Raw float32 files, little-endian, for the inputs and outputs of blocks.
#ifndef MINICPMV_ENGINE_FLOAT_FILE_H_
#define MINICPMV_ENGINE_FLOAT_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/engine/regular_file.h"
#include "runtime/engine/tensors.h"

namespace minicpmv {

// A file's values, in memory that is aligned for blocks.
class FloatInput {
 public:
  // Reads a tensor of this shape; an extent of -1 is derived from the file's size.
  // Throws EngineError (file_error): no such file, or its size does not match the shape.
  FloatInput(const std::string& path, std::vector<int64_t> shape);

  const std::vector<int64_t>& shape() const { return shape_; }

  // Returns rows (count, D) of the tensor (..., D) viewed as a matrix: leading axes are flattened.
  Tensor Rows(int64_t first, int64_t count) const;

  // Returns the whole tensor.
  Tensor Whole() const { return Borrow(values_.data(), shape_, kFloat32); }

 private:
  FloatInput(const std::string& path, const RegularFile& file, std::vector<int64_t> shape);

  std::vector<int64_t> shape_;
  AlignedBuffer values_;
};

// A file that is written piecewise, in any order.
class FloatOutput {
 public:
  // Throws EngineError (file_error): the file cannot be written.
  explicit FloatOutput(const std::string& path);
  ~FloatOutput();

  FloatOutput(const FloatOutput&) = delete;
  FloatOutput& operator=(const FloatOutput&) = delete;

  // Writes a tensor's values. offset: position in the file, counted in values.
  void Write(const Tensor& tensor, int64_t offset) const;

 private:
  const std::string path_;
  const int fd_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_FLOAT_FILE_H_
