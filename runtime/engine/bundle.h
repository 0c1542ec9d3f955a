// A bundle: a folder described by its manifest `bundle.json`, opened and fully validated.
#ifndef MINICPMV_ENGINE_BUNDLE_H_
#define MINICPMV_ENGINE_BUNDLE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine/fields.h"
#include "runtime/engine/model_config.h"
#include "runtime/engine/regular_file.h"
#include "runtime/engine/weights_file.h"

namespace minicpmv {

// Reads what `convert/bundle/manifest.py` writes; both support the same format version. Checks the
// sizes of the files that the engine opens; `minicpmv verify` checks their hashes.
class Bundle {
 public:
  // Opens a folder that was made for this target and `program_id`. weights: used in place of the
  // folder's file; null: there is none.
  // Throws EngineError: invalid_bundle (not a bundle, damaged or altered; the message names the
  // file and the fault), other_program (made for another program).
  Bundle(const std::string& folder, const std::string& target, const std::string& program_id,
         const RegularFile* weights);

  const ModelConfig& config() const { return config_; }

  // The bytes of tokenizer.model; empty for a bundle without a tokenizer.
  const std::optional<std::string>& tokenizer() const { return tokenizer_; }

  // Returns the stored parts of a tensor, in the order in which blocks take them: a 4-bit tensor
  // has two, codes and scales. name: one of TensorShapes(config()).
  std::vector<TensorView> Parts(const std::string& name) const;

  // Returns the format of a tensor's values: q4, q8, f16_tiled, f16 or f32. name: as for Parts.
  const std::string& Format(const std::string& name) const { return tensors_.at(name).format; }

  // Size of the weights file, bytes.
  size_t weights_bytes() const { return weights_->size(); }

  // SHA-256 of the weights file, as the manifest states it.
  const std::string& weights_sha256() const { return weights_sha256_; }

  // Returns the path of a file at the bundle's top level, its size checked; nullopt if the
  // manifest does not list it.
  // Throws EngineError (invalid_bundle): truncated or altered.
  std::optional<std::string> Find(const std::string& name) const;

  // Returns the bytes of such a file.
  // Throws EngineError (invalid_bundle): as Find, or larger than any file that is read whole.
  std::optional<std::string> Read(const std::string& name) const;

 private:
  void CheckSize(const std::string& name, int64_t found) const;
  void CheckProgram(Fields targets, const std::string& target, const std::string& program_id);
  void CheckTensors() const;
  [[noreturn]] void Refuse(const std::string& name, const std::string& problem) const;

  std::string folder_;
  std::map<std::string, int64_t> sizes_;  // bytes, of the files that the manifest lists
  std::string weights_sha256_;
  ModelConfig config_{};
  TensorRecords tensors_;
  int64_t group_size_ = 0;  // inputs that share a scale
  int64_t code_bits_ = 0;   // bits of a quantized weight
  std::optional<std::string> tokenizer_;
  std::optional<WeightsFile> weights_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_BUNDLE_H_
