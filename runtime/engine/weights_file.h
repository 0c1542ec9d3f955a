// The bundle's weights: a safetensors file, mapped into memory and used in place.
#ifndef MINICPMV_ENGINE_WEIGHTS_FILE_H_
#define MINICPMV_ENGINE_WEIGHTS_FILE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/engine/regular_file.h"

namespace minicpmv {

enum class DType { kU8, kI8, kF16, kF32 };

// Returns the size of one value, bytes.
size_t SizeOf(DType dtype);
// Returns a type's name as the format spells it: "U8", "I8", "F16", "F32".
const char* NameOf(DType dtype);

// A view of a tensor; does not own the memory.
struct TensorView {
  DType dtype;
  std::vector<int64_t> shape;
  const uint8_t* data;  // aligned to kWeightAlignment bytes
  size_t size;          // bytes
};

inline constexpr size_t kWeightAlignment = 64;  // bytes

// A weights file as `convert/bundle/weights_file.py` writes it: aligned tensors; the padding
// between them consists of byte tensors named `__pad.N`, which are hidden here.
//
// The file is fully validated when it is opened: tensors cover it exactly, do not overlap, and have
// the size that follows from their type and shape. It must not change while it is open.
class WeightsFile {
 public:
  // path: names the file in errors; it need not lead to it.
  // Throws EngineError (invalid_bundle): no such file, truncated, altered, or not this format.
  WeightsFile(const std::string& path, const RegularFile& file);
  ~WeightsFile();

  WeightsFile(const WeightsFile&) = delete;
  WeightsFile& operator=(const WeightsFile&) = delete;

  // Returns a tensor, which must have this type and shape.
  // Throws EngineError (invalid_bundle): it has others, or does not exist.
  const TensorView& Get(const std::string& name, DType dtype,
                        const std::vector<int64_t>& shape) const;

  bool Has(const std::string& name) const { return tensors_.count(name) != 0; }

  const std::map<std::string, TensorView>& tensors() const { return tensors_; }

  // Size of the whole file, bytes.
  size_t size() const { return size_; }

 private:
  std::string path_;
  const uint8_t* mapped_ = nullptr;
  size_t size_ = 0;  // bytes
  std::map<std::string, TensorView> tensors_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_WEIGHTS_FILE_H_
