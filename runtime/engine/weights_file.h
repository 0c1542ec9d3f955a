// The bundle's weights: a safetensors file, mapped into memory and used in place.
#ifndef MINICPMV_ENGINE_WEIGHTS_FILE_H_
#define MINICPMV_ENGINE_WEIGHTS_FILE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace minicpmv {

enum class DType { kU8, kI8, kF16, kF32 };

// Returns the size of one value, bytes.
size_t SizeOf(DType dtype);
// Returns a type's name as the format spells it: "U8", "I8", "F16", "F32".
const char* NameOf(DType dtype);

// A tensor that lies in somebody else's memory.
struct TensorView {
  DType dtype;
  std::vector<int64_t> shape;
  const uint8_t* data;  // on a border of kWeightAlignment bytes
  size_t size;          // bytes
};

inline constexpr size_t kWeightAlignment = 64;  // bytes

// A weights file as `convert/bundle/weights_file.py` writes it: tensors lie side by side, each on its
// border; what lies between two is a tensor of bytes named `__pad.N`, which is not shown here.
//
// The file is checked whole when it is opened: the values fill it exactly, none overlap, and each
// takes the bytes that its type and shape say. It must not change while it is open.
class WeightsFile {
 public:
  // Throws EngineError (invalid_bundle): no such file, truncated, altered, or another format.
  explicit WeightsFile(const std::string& path);
  ~WeightsFile();

  WeightsFile(const WeightsFile&) = delete;
  WeightsFile& operator=(const WeightsFile&) = delete;

  // Returns a tensor that must have this type and shape.
  // Throws EngineError (invalid_bundle): it has others, or is not there.
  const TensorView& Get(const std::string& name, DType dtype,
                        const std::vector<int64_t>& shape) const;

  bool Has(const std::string& name) const { return tensors_.count(name) != 0; }

  const std::map<std::string, TensorView>& tensors() const { return tensors_; }

  // Of the whole file, bytes.
  size_t size() const { return size_; }

 private:
  std::string path_;
  const uint8_t* mapped_ = nullptr;
  size_t size_ = 0;  // bytes
  std::map<std::string, TensorView> tensors_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_WEIGHTS_FILE_H_
