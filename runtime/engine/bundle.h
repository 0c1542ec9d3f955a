// A bundle: the folder that describes itself in `bundle.json`, opened and checked whole.
#ifndef MINICPMV_ENGINE_BUNDLE_H_
#define MINICPMV_ENGINE_BUNDLE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine/fields.h"
#include "runtime/engine/model_config.h"
#include "runtime/engine/weights_file.h"

namespace minicpmv {

// What `convert/bundle/manifest.py` writes; both read the same format and version. Files' sizes are
// checked, of those that the engine opens; their hashes are `minicpmv verify`'s business.
class Bundle {
 public:
  // Opens a folder that was made for the program `program_id` of a target.
  // Throws EngineError: invalid_bundle (no bundle, damaged or altered: names the file and what is
  // wrong), other_program (made for another program).
  Bundle(const std::string& folder, const std::string& target, const std::string& program_id);

  const ModelConfig& config() const { return config_; }

  // The bytes of tokenizer.model; none in a bundle that cannot read text.
  const std::optional<std::string>& tokenizer() const { return tokenizer_; }

  // Returns what is stored of a tensor, in the order in which blocks take it: a 4-bit tensor has
  // two parts, codes and scales. name: one of TensorShapes(config()).
  std::vector<TensorView> Parts(const std::string& name) const;

  // Of the weights file, bytes.
  size_t weights_bytes() const { return weights_->size(); }

  // Of the weights file, as the manifest states it.
  const std::string& weights_sha256() const { return weights_sha256_; }

  // Returns where a file lies that the manifest lists at the bundle's top, its size checked;
  // nothing if it lists none of this name.
  // Throws EngineError (invalid_bundle): truncated or altered.
  std::optional<std::string> Find(const std::string& name) const;

  // Returns the bytes of such a file.
  // Throws EngineError (invalid_bundle): likewise, or larger than any that is read whole.
  std::optional<std::string> Read(const std::string& name) const;

 private:
  void CheckProgram(Fields targets, const std::string& target, const std::string& program_id);
  void CheckTensors() const;
  [[noreturn]] void Refuse(const std::string& name, const std::string& problem) const;

  std::string folder_;
  std::map<std::string, int64_t> sizes_;  // of the files that the manifest lists, bytes
  std::string weights_sha256_;
  ModelConfig config_{};
  TensorRecords tensors_;
  int64_t group_size_ = 0;  // inputs that share a scale
  int64_t code_bits_ = 0;   // of a quantized weight
  std::optional<std::string> tokenizer_;
  std::optional<WeightsFile> weights_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_BUNDLE_H_
