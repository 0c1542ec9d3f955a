// The model's geometry from a bundle's manifest, and the tensors that it implies.
#ifndef MINICPMV_ENGINE_MODEL_CONFIG_H_
#define MINICPMV_ENGINE_MODEL_CONFIG_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine/fields.h"
#include "runtime/engine/slices.h"

namespace minicpmv {

using Shape = std::vector<int64_t>;

// What a model with slices has besides. Fields are named as in `convert/checkpoint/config.py`.
struct SlicesConfig {
  SliceRules rules;
  int64_t trained_grid;  // patches along one side of the stored positions
  SliceTags tags;
};

// Fields are named as in `convert/checkpoint/config.py`.
struct VisionConfig {
  int64_t image_size;  // S, pixels; not used with slices
  int64_t patch_size;  // pixels
  int64_t embed_dim;   // Dv
  int64_t depth;       // blocks
  int64_t mlp_hidden_dim;
  int64_t query_num;  // Q, image tokens of an image
  std::optional<SlicesConfig> slices;  // nullopt: a picture is one square of `image_size`

  // Returns how a picture is cut; a model without slices resizes it to one square.
  // max_slices: at most the model's limit, which is the default.
  // Throws EngineError (invalid_picture): the picture is too long and narrow.
  Cut Plan(Size picture, std::optional<int64_t> max_slices = std::nullopt) const;

  // Returns columns and rows of an image's patches.
  Size Patches(Size image) const { return {image.width / patch_size, image.height / patch_size}; }

  // Returns the most patches that an image has; without slices each image has that many.
  int64_t most_patches() const;

  // Returns the most slices that a picture is cut into; 0: a model without slices.
  int64_t max_slices() const { return slices ? slices->rules.max_slice_nums : 0; }
};

// The storage format of keys and values; named as in `convert/bundle/kv_cache.py`.
enum class KVFormat { kFp16, kInt8 };

struct DecoderConfig {
  int64_t vocab_size;
  int64_t hidden_size;  // D
  int64_t intermediate_size;
  int64_t num_hidden_layers;
  int64_t num_attention_heads;
  int64_t num_key_value_heads;
  double rope_theta;
  int64_t eos_token_id;
  KVFormat kv_cache;  // the bundle's choice, not the model's

  int64_t head_dim() const { return hidden_size / num_attention_heads; }
  int64_t kv_dim() const { return num_key_value_heads * head_dim(); }
};

struct ModelConfig {
  std::string architecture;
  DecoderConfig decoder;
  std::optional<VisionConfig> vision;  // nullopt: a text-only model
  bool untied_head;                    // the LM head has weights of its own
};

// A tensor in the manifest, before tiling and packing.
struct TensorRecord {
  std::string format;  // named as in `convert/bundle/plan.py`
  Shape shape;
};

using TensorRecords = std::map<std::string, TensorRecord>;

// Reads the geometry from the checkpoint's configuration (`model` in the manifest). What the
// converter looks up in tables of its own is derived from the tensors' shapes.
// Throws EngineError, with the code of the fields: a field is missing, or fields contradict.
ModelConfig ReadModelConfig(Fields model, const std::string& architecture, KVFormat kv_cache,
                            const TensorRecords& tensors);

// Returns the name and shape of every tensor that a bundle of this model has.
std::map<std::string, Shape> TensorShapes(const ModelConfig& config);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_MODEL_CONFIG_H_
