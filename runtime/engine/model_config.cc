#include "runtime/engine/model_config.h"

#include <limits>

namespace minicpmv {
namespace {

// Larger than in any model; products of a few such numbers stay far below 2^63.
constexpr int64_t kMaxExtent = 1 << 24;

// Reads an extent; names are those of the checkpoint's configuration.
int64_t Extent(Fields* model, const char* name) {
  const int64_t extent = model->Integer(name, 1);
  if (extent > kMaxExtent) model->Refuse(std::string(name) + " is larger than in any model");
  return extent;
}

// Returns the extent of an axis of a tensor that must exist.
int64_t Axis(const Fields& model, const TensorRecords& tensors, const std::string& name,
             size_t axis) {
  const auto found = tensors.find(name);
  if (found == tensors.end() || found->second.shape.size() <= axis) {
    model.Refuse("the manifest lacks the tensor " + name + ", or it has too few axes");
  }
  const int64_t extent = found->second.shape[axis];
  if (extent < 1 || extent > kMaxExtent) model.Refuse("tensor " + name + " has no usable shape");
  return extent;
}

// Returns the side of a patch, pixels, from the tensor that holds three colour channels of it. The
// configuration may omit it: the converter then looks it up by the vision encoder's name.
int64_t PatchSize(Fields* model, const TensorRecords& tensors) {
  const int64_t values = Axis(*model, tensors, "vision.patch_embed.weight", 1);
  int64_t side = 1;
  while (3 * side * side < values) ++side;
  const int64_t given = model->OptionalInteger("patch_size", 1).value_or(side);
  if (3 * side * side != values || given != side) {
    model->Refuse("patch_size does not fit the tensor vision.patch_embed.weight");
  }
  return side;
}

DecoderConfig ReadDecoder(Fields* model) {
  DecoderConfig c{};
  c.vocab_size = Extent(model, "vocab_size");
  c.hidden_size = Extent(model, "hidden_size");
  c.intermediate_size = Extent(model, "intermediate_size");
  c.num_hidden_layers = Extent(model, "num_hidden_layers");
  c.num_attention_heads = Extent(model, "num_attention_heads");
  c.num_key_value_heads = model->Has("num_key_value_heads") ? Extent(model, "num_key_value_heads")
                                                            : c.num_attention_heads;
  c.rope_theta = model->OptionalNumber("rope_theta").value_or(10000.0);
  c.eos_token_id = model->OptionalInteger("eos_token_id", 0).value_or(2);
  if (c.hidden_size % c.num_attention_heads != 0 || c.head_dim() % 2 != 0 ||
      c.num_attention_heads % c.num_key_value_heads != 0 || c.rope_theta <= 0) {
    model->Refuse("the numbers of heads do not fit hidden_size");
  }
  if (c.eos_token_id >= c.vocab_size) model->Refuse("eos_token_id is outside the vocabulary");
  return c;
}

VisionConfig ReadVision(Fields* model, const TensorRecords& tensors) {
  // Positions and prompt are others, whether its pictures are cut or not.
  if (model->Has("slice_mode")) {
    model->Refuse(
        "slice_mode: this engine takes pictures as one square, not MiniCPM-V 2.0's images");
  }
  VisionConfig c{};
  c.image_size = Extent(model, "image_size");
  c.patch_size = PatchSize(model, tensors);
  c.query_num = Extent(model, "query_num");
  if (c.image_size % c.patch_size != 0) {
    model->Refuse("image_size is not a multiple of patch_size");
  }
  c.embed_dim = Axis(*model, tensors, "vision.pos_embed", 1);
  c.mlp_hidden_dim = Axis(*model, tensors, "vision.blocks.0.fc1.weight", 0);
  while (tensors.count("vision.blocks." + std::to_string(c.depth) + ".norm1.weight") != 0) {
    ++c.depth;
  }
  return c;
}

void AddPair(const std::string& name, const Shape& weight, std::map<std::string, Shape>* shapes) {
  shapes->emplace(name + ".weight", weight);
  shapes->emplace(name + ".bias", Shape{weight[0]});
}

void AddVision(const VisionConfig& c, std::map<std::string, Shape>* shapes) {
  const int64_t d = c.embed_dim, hidden = c.mlp_hidden_dim;
  AddPair("vision.patch_embed", {d, 3 * c.patch_size * c.patch_size}, shapes);
  shapes->emplace("vision.pos_embed", Shape{c.num_patches(), d});
  for (int64_t i = 0; i < c.depth; ++i) {
    const std::string at = "vision.blocks." + std::to_string(i);
    AddPair(at + ".norm1", {d}, shapes);
    AddPair(at + ".qkv", {3 * d, d}, shapes);
    AddPair(at + ".proj", {d, d}, shapes);
    AddPair(at + ".norm2", {d}, shapes);
    AddPair(at + ".fc1", {hidden, d}, shapes);
    AddPair(at + ".fc2", {d, hidden}, shapes);
  }
  AddPair("vision.norm", {d}, shapes);
}

void AddResampler(const VisionConfig& c, int64_t d, std::map<std::string, Shape>* shapes) {
  shapes->emplace("resampler.query", Shape{c.query_num, d});
  shapes->emplace("resampler.kv_proj.weight", Shape{d, c.embed_dim});
  AddPair("resampler.ln_kv", {d}, shapes);
  shapes->emplace("resampler.k_proj.weight", Shape{d, d});
  shapes->emplace("resampler.key_positions", Shape{c.num_patches(), d});
  AddPair("resampler.v_proj", {d, d}, shapes);
  AddPair("resampler.out_proj", {d, d}, shapes);
  AddPair("resampler.ln_post", {d}, shapes);
  shapes->emplace("resampler.proj.weight", Shape{d, d});
}

void AddDecoder(const DecoderConfig& c, std::map<std::string, Shape>* shapes) {
  const int64_t d = c.hidden_size, hidden = c.intermediate_size;
  shapes->emplace("llm.embed", Shape{c.vocab_size, d});
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
    const std::string at = "llm.layers." + std::to_string(i);
    shapes->emplace(at + ".input_norm.weight", Shape{d});
    shapes->emplace(at + ".qkv", Shape{d + 2 * c.kv_dim(), d});
    shapes->emplace(at + ".o", Shape{d, d});
    shapes->emplace(at + ".post_norm.weight", Shape{d});
    shapes->emplace(at + ".gate_up", Shape{2 * hidden, d});
    shapes->emplace(at + ".down", Shape{d, hidden});
  }
  shapes->emplace("llm.norm.weight", Shape{d});
}

}  // namespace

ModelConfig ReadModelConfig(Fields model, const std::string& architecture, KVFormat kv_cache,
                            const TensorRecords& tensors) {
  ModelConfig config{};
  config.architecture = architecture;
  config.decoder = ReadDecoder(&model);
  config.decoder.kv_cache = kv_cache;
  // The claimed number of layers must not allocate more than the manifest itself.
  if (static_cast<size_t>(config.decoder.num_hidden_layers) > tensors.size()) {
    model.Refuse("num_hidden_layers is larger than the number of tensors");
  }
  if (tensors.count("vision.pos_embed") != 0) config.vision = ReadVision(&model, tensors);
  config.untied_head = tensors.count("llm.head") != 0;
  return config;
}

std::map<std::string, Shape> TensorShapes(const ModelConfig& config) {
  std::map<std::string, Shape> shapes;
  if (config.vision) {
    AddVision(*config.vision, &shapes);
    AddResampler(*config.vision, config.decoder.hidden_size, &shapes);
  }
  AddDecoder(config.decoder, &shapes);
  if (config.untied_head) {
    shapes.emplace("llm.head", Shape{config.decoder.vocab_size, config.decoder.hidden_size});
  }
  return shapes;
}

}  // namespace minicpmv
