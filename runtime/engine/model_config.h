// The model's geometry from a bundle's manifest, and the tensors that it implies.
#ifndef MINICPMV_ENGINE_MODEL_CONFIG_H_
#define MINICPMV_ENGINE_MODEL_CONFIG_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine/fields.h"

namespace minicpmv {

using Shape = std::vector<int64_t>;

// Fields are named as in `convert/checkpoint/config.py`.
struct VisionConfig {
  int64_t image_size;  // S, pixels
  int64_t patch_size;  // pixels
  int64_t embed_dim;   // Dv
  int64_t depth;       // blocks
  int64_t mlp_hidden_dim;
  int64_t query_num;  // Q, image tokens of a picture

  int64_t num_patches() const {  // P
    const int64_t grid = image_size / patch_size;
    return grid * grid;
  }
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
