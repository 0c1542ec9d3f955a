#include "runtime/engine/bundle.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "runtime/engine/error.h"
#include "runtime/engine/regular_file.h"
#include "runtime/engine/utf8.h"

namespace minicpmv {
namespace {

constexpr char kManifest[] = "bundle.json";
constexpr char kWeights[] = "weights.safetensors";
constexpr char kTokenizer[] = "tokenizer.model";
constexpr char kFormat[] = "minicpmv-bundle";
constexpr int64_t kFormatVersion = 2;
constexpr int64_t kFileLimit = 64 << 20;  // bytes; well above any manifest or tokenizer
constexpr int64_t kTileRows = 16;         // output rows of a weight tile; see quantize/layout.py
constexpr int64_t kBlocksInGroup = 4;
constexpr int64_t kInt8Group = 128;
constexpr int64_t kMaxCodeBits = 8;

int64_t Tiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

[[noreturn]] void RefuseFile(const std::string& path, const std::string& problem) {
  throw EngineError(error_code::kInvalidBundle, path + ": " + problem);
}

int64_t FileSize(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0) RefuseFile(path, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) RefuseFile(path, "not a file");
  return static_cast<int64_t>(status.st_size);
}

std::string ReadFile(const std::string& path) {
  const RegularFile file(path);
  if (!file.problem().empty()) RefuseFile(path, file.problem());
  if (file.size() > kFileLimit) {
    RefuseFile(path, "larger than " + std::to_string(kFileLimit >> 20) + " MiB");
  }
  std::string text(static_cast<size_t>(file.size()), '\0');
  if (!file.Read(text.data(), text.size())) RefuseFile(path, "cannot be read");
  return text;
}

// One stored part of a tensor in the weights file: the suffix of its name, its type and shape.
struct Part {
  std::string suffix;
  DType dtype;
  Shape shape;
};

// Returns an empty list if a tensor of this shape cannot have this format; see
// convert/bundle/plan.py.
std::vector<Part> PartsOf(const TensorRecord& tensor, int64_t group_size, int64_t code_bits) {
  const Shape& shape = tensor.shape;
  if (tensor.format == "f32") return {{"", DType::kF32, shape}};
  if (tensor.format == "f16") return {{"", DType::kF16, shape}};
  if (shape.size() != 2) return {};
  if (tensor.format == "f16_tiled") {
    return {{"", DType::kF16, {Tiles(shape[0]), shape[1], kTileRows}}};
  }
  if (tensor.format == "q8") {
    const int64_t groups = (shape[1] + kInt8Group - 1) / kInt8Group;
    return {{".q_weight", DType::kI8, {Tiles(shape[0]), groups, kInt8Group / 4, 4 * kTileRows}},
            {".q_scale", DType::kF16, {Tiles(shape[0]), groups, kTileRows}}};
  }
  if (tensor.format != "q4" || shape[1] % group_size != 0) return {};
  const int64_t groups = shape[1] / group_size;
  const int64_t block = group_size * kTileRows * code_bits / 8 / kBlocksInGroup;  // bytes
  return {{".q_weight", DType::kU8, {Tiles(shape[0]), groups, kBlocksInGroup, block}},
          {".q_scale", DType::kF16, {Tiles(shape[0]), groups, kTileRows}}};
}

KVFormat ReadKVFormat(Fields* manifest) {
  const std::string name = manifest->String("kv_cache");
  if (name == "fp16") return KVFormat::kFp16;
  if (name == "int8") return KVFormat::kInt8;
  manifest->Refuse("kv_cache is " + name + "; this engine knows fp16 and int8");
}

TensorRecords ReadTensors(Fields table) {
  TensorRecords records;
  for (const std::string& name : table.Names()) {
    Fields entry = table.Object(name);
    records[name] = {entry.String("format"), entry.Integers("shape")};
  }
  return records;
}

}  // namespace

Bundle::Bundle(const std::string& folder, const std::string& target, const std::string& program_id,
               const RegularFile* weights)
    : folder_(folder) {
  const std::string path = folder + "/" + kManifest;
  const std::string text = ReadFile(path);
  if (!IsValidUtf8(text)) RefuseFile(path, "not UTF-8");
  Fields manifest(ParseJson(text, error_code::kInvalidBundle, path), error_code::kInvalidBundle,
                  path);
  if (manifest.OptionalString("format") != kFormat) {
    manifest.Refuse(std::string("not a bundle's manifest: its format is not ") + kFormat);
  }
  const int64_t version = manifest.Integer("format_version", 0);
  if (version != kFormatVersion) {
    manifest.Refuse("format version " + std::to_string(version) + "; this engine reads " +
                    std::to_string(kFormatVersion) + ": convert the checkpoint again");
  }
  CheckProgram(manifest.Object("targets"), target, program_id);
  Fields files = manifest.Object("files");
  for (const std::string& name : files.Names()) {
    sizes_[name] = files.Object(name).Integer("size", 0);
  }
  weights_sha256_ = files.Object(kWeights).String("sha256");
  const std::string place = folder + "/" + kWeights;
  std::optional<RegularFile> own;
  if (weights == nullptr) weights = &own.emplace(place);
  if (!weights->problem().empty()) Refuse(kWeights, weights->problem());
  CheckSize(kWeights, weights->size());
  Fields quantization = manifest.Object("quantization");
  group_size_ = quantization.Integer("group_size", 1);
  code_bits_ = quantization.Integer("bits", 1);
  if (code_bits_ > kMaxCodeBits) {
    quantization.Refuse("bits: expected at most " + std::to_string(kMaxCodeBits));
  }
  tensors_ = ReadTensors(manifest.Object("tensors"));
  config_ = ReadModelConfig(manifest.Object("model"), manifest.String("architecture"),
                            ReadKVFormat(&manifest), tensors_);
  tokenizer_ = Read(kTokenizer);
  weights_.emplace(place, *weights);
  CheckTensors();
}

std::vector<TensorView> Bundle::Parts(const std::string& name) const {
  std::vector<TensorView> parts;
  for (const Part& part : PartsOf(tensors_.at(name), group_size_, code_bits_)) {
    parts.push_back(weights_->Get(name + part.suffix, part.dtype, part.shape));
  }
  return parts;
}

std::optional<std::string> Bundle::Find(const std::string& name) const {
  const auto listed = sizes_.find(name);
  // A name with a slash could point outside the bundle.
  if (listed == sizes_.end() || name.find('/') != std::string::npos) return std::nullopt;
  const std::string path = folder_ + "/" + name;
  CheckSize(name, FileSize(path));
  return path;
}

void Bundle::CheckSize(const std::string& name, int64_t found) const {
  const int64_t size = sizes_.at(name);
  if (found != size) {
    Refuse(name, std::string(found < size ? "truncated" : "altered") + ": it has " +
                     std::to_string(found) + " bytes, " + kManifest + " says " +
                     std::to_string(size));
  }
}

std::optional<std::string> Bundle::Read(const std::string& name) const {
  const auto path = Find(name);
  if (!path) return std::nullopt;
  return ReadFile(*path);
}

void Bundle::CheckProgram(Fields targets, const std::string& target,
                          const std::string& program_id) {
  if (!targets.Has(target)) {
    throw EngineError(error_code::kOtherProgram,
                      folder_ + ": not made for the target " + target + ": convert again");
  }
  const std::string found = targets.Object(target).String("program_id");
  if (found != program_id) {
    throw EngineError(error_code::kOtherProgram,
                      folder_ + ": made for the program " + found + "; this one is " + program_id +
                          ": convert again, or use the engine that came with the bundle");
  }
}

void Bundle::CheckTensors() const {
  size_t stored = 0;
  for (const auto& [name, shape] : TensorShapes(config_)) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end() || found->second.shape != shape) {
      Refuse(kManifest, "tensor " + name + " does not fit its model");
    }
    if (PartsOf(found->second, group_size_, code_bits_).empty()) {
      Refuse(kManifest, "tensor " + name + " cannot have the format " + found->second.format);
    }
    stored += Parts(name).size();
  }
  if (TensorShapes(config_).size() != tensors_.size() || stored != weights_->tensors().size()) {
    Refuse(kManifest, "describes tensors that its model does not have");
  }
}

void Bundle::Refuse(const std::string& name, const std::string& problem) const {
  RefuseFile(folder_ + "/" + name, problem);
}

}  // namespace minicpmv
