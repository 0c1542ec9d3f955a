#include "runtime/engine/model_config.h"

#include <limits>

namespace minicpmv {
namespace {

// Larger than in any model; products of a few such numbers stay far below 2^63.
constexpr int64_t kMaxExtent = 1 << 24;
// Buffers for the largest picture are planned from these.
constexpr int64_t kMaxSlices = 1 << 10;
constexpr int64_t kMaxResolution = 1 << 12;  // pixels
// Where the configuration does not state them, as upstream.
constexpr int64_t kSliceStartId = 111, kSliceEndId = 112;

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

int32_t TokenId(Fields* model, const char* name, int64_t preset) {
  const int64_t id = model->OptionalInteger(name, 0).value_or(preset);
  if (id >= Extent(model, "vocab_size")) {
    model->Refuse(std::string(name) + " is outside the vocabulary");
  }
  return static_cast<int32_t>(id);
}

// Returns nullopt for a model without slices, which has none of these keys.
std::optional<SlicesConfig> ReadSlices(Fields* model, int64_t patch_size,
                                       const TensorRecords& tensors) {
  const std::optional<bool> mode = model->OptionalFlag("slice_mode");
  if (!mode) return std::nullopt;
  SlicesConfig c{};
  const int64_t most = Extent(model, "max_slice_nums");
  c.rules = {*mode ? most : 1, Extent(model, "scale_resolution"), patch_size};
  if (c.rules.max_slice_nums > kMaxSlices || c.rules.scale_resolution < patch_size ||
      c.rules.scale_resolution > kMaxResolution) {
    model->Refuse("max_slice_nums or scale_resolution is out of range");
  }
  const int64_t positions = Axis(*model, tensors, "vision.pos_embed", 0);
  while (c.trained_grid * c.trained_grid < positions) ++c.trained_grid;
  if (c.trained_grid * c.trained_grid != positions) {
    model->Refuse("the positions of the tensor vision.pos_embed form no square");
  }
  c.tags = {TokenId(model, "slice_start_token_id", kSliceStartId),
            TokenId(model, "slice_end_token_id", kSliceEndId)};
  if (c.tags.start == c.tags.end) model->Refuse("both slice tokens have the same id");
  return c;
}

VisionConfig ReadVision(Fields* model, const TensorRecords& tensors) {
  VisionConfig c{};
  c.image_size = Extent(model, "image_size");
  c.patch_size = PatchSize(model, tensors);
  c.query_num = Extent(model, "query_num");
  if (c.image_size % c.patch_size != 0) {
    model->Refuse("image_size is not a multiple of patch_size");
  }
  c.embed_dim = Axis(*model, tensors, "vision.pos_embed", 1);
  c.slices = ReadSlices(model, c.patch_size, tensors);
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
  const int64_t side = c.slices ? c.slices->trained_grid : c.image_size / c.patch_size;
  shapes->emplace("vision.pos_embed", Shape{side * side, d});
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
  if (c.slices) {
    shapes->emplace("resampler.k_proj.bias", Shape{d});
    shapes->emplace("resampler.key_column_proj.weight", Shape{d, d / 2});
    shapes->emplace("resampler.key_row_proj.weight", Shape{d, d / 2});
  } else {
    shapes->emplace("resampler.key_positions", Shape{c.most_patches(), d});
  }
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

Cut VisionConfig::Plan(Size picture, std::optional<int64_t> max_slices) const {
  if (!slices) {
    const Size square{image_size, image_size};
    return {square, {}, square};
  }
  SliceRules rules = slices->rules;
  rules.max_slice_nums = max_slices.value_or(rules.max_slice_nums);
  return PlanCut(picture, rules);
}

int64_t VisionConfig::most_patches() const {
  return slices ? MostPatches(slices->rules) : Patches({image_size, image_size}).area();
}

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
