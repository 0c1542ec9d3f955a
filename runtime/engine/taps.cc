#include "runtime/engine/taps.h"

#include <algorithm>
#include <string>
#include <vector>

#include "runtime/engine/decoder.h"
#include "runtime/engine/float_file.h"
#include "runtime/engine/kv_cache.h"
#include "runtime/engine/picture_file.h"
#include "runtime/engine/protocol.h"

namespace minicpmv {
namespace {

namespace field = protocol::field;
namespace tap = protocol::tap;
using Cancelled = std::function<bool()>;

struct Files {
  std::string input, output;
};

Files TakeFiles(Fields* request) {
  return {request->String(field::kInput), request->String(field::kOutput)};
}

void StopIfCancelled(const Cancelled& cancelled) {
  if (cancelled()) throw EngineError(error_code::kCancelled, "the tap was cancelled");
}

Shape ShapeOf(const Tensor& tensor) { return Shape(tensor.shape().begin(), tensor.shape().end()); }

Shape WriteWhole(const Tensor& tensor, const std::string& path) {
  FloatOutput(path).Write(tensor, 0);
  return ShapeOf(tensor);
}

Shape TapVision(const std::string& what, Fields* request, Model* model) {
  model->pictures();  // throws if there is no vision encoder
  const VisionConfig& c = *model->config().vision;
  const Blocks& blocks = model->blocks();
  const bool from_pixels = what == tap::kVisionEmbed;
  const Files files = TakeFiles(request);
  const int64_t index = what == tap::kVisionBlock ? request->Integer(field::kIndex, 0) : 0;
  request->RefuseUnknown();
  if (index >= c.depth) request->Refuse("there are only " + std::to_string(c.depth) + " blocks");
  const FloatInput input(files.input, from_pixels ? Shape{3, c.image_size, c.image_size}
                                                  : Shape{c.num_patches(), c.embed_dim});
  const Tensor x = input.Whole();
  if (from_pixels) return WriteWhole(blocks.VisionEmbed(x), files.output);
  if (what == tap::kVisionNorm) return WriteWhole(blocks.VisionNorm(x), files.output);
  if (what == tap::kResampler) return WriteWhole(blocks.Resample(x), files.output);
  return WriteWhole(blocks.VisionBlock(index, x), files.output);
}

Shape TapPreprocess(Fields* request, Model* model) {
  const Files files = TakeFiles(request);
  request->RefuseUnknown();
  const PictureFile picture(files.input);
  return WriteWhole(model->pictures().Preprocess(picture.picture()), files.output);
}

Shape TapEmbed(Fields* request, Model* model, const Cancelled& cancelled) {
  std::vector<int32_t> ids;
  const DecoderConfig& c = model->config().decoder;
  for (const int64_t id : request->Integers(field::kIds)) {
    ids.push_back(static_cast<int32_t>(std::min(id, c.vocab_size)));  // clamped; still outside
  }
  if (ids.empty()) request->Refuse("no ids");
  const std::string path = request->String(field::kOutput);
  request->RefuseUnknown();
  Decoder decoder(model->blocks());
  const FloatOutput output(path);
  const auto total = static_cast<int64_t>(ids.size());
  for (int64_t start = 0; start < total; start += kPrefillChunk) {
    StopIfCancelled(cancelled);
    const int64_t count = std::min(kPrefillChunk, total - start);
    output.Write(decoder.Embed(ids.data() + start, count), start * c.hidden_size);
  }
  return {total, c.hidden_size};
}

Shape TapLayers(Fields* request, Model* model, const Cancelled& cancelled) {
  const DecoderConfig& c = model->config().decoder;
  const Files files = TakeFiles(request);
  const bool per_layer = request->OptionalFlag(field::kPerLayer).value_or(false);
  const int64_t window = request->Integer(field::kWindow, 1);
  const int64_t pinned = request->Integer(field::kPinned, 1);
  request->RefuseUnknown();
  const FloatInput input(files.input, {per_layer ? c.num_hidden_layers : 1, -1, c.hidden_size});
  const int64_t total = input.shape()[1];
  KVCache cache(c, window);
  cache.Reset(pinned);
  const FloatOutput output(files.output);
  for (int64_t start = 0; start < total; start += kPrefillChunk) {
    const int64_t count = std::min(kPrefillChunk, total - start);
    Tensor x = input.Rows(start, count);
    for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
      StopIfCancelled(cancelled);
      if (per_layer) x = input.Rows(i * total + start, count);
      x = model->blocks().DecoderLayer(i, x, cache.Layer(i, count));
      output.Write(x, (i * total + start) * c.hidden_size);
    }
    cache.Append(count);
  }
  return {c.num_hidden_layers, total, c.hidden_size};
}

Shape TapLogits(Fields* request, Model* model, const Cancelled& cancelled) {
  const DecoderConfig& c = model->config().decoder;
  const Files files = TakeFiles(request);
  request->RefuseUnknown();
  const FloatInput input(files.input, {-1, c.hidden_size});
  const FloatOutput output(files.output);
  const int64_t total = input.shape()[0];
  for (int64_t start = 0; start < total; start += kPrefillChunk) {
    StopIfCancelled(cancelled);
    const int64_t count = std::min(kPrefillChunk, total - start);
    output.Write(model->blocks().Logits(input.Rows(start, count)), start * c.vocab_size);
  }
  return {total, c.vocab_size};
}

Shape Dispatch(Fields* request, Model* model, const Cancelled& cancelled) {
  const std::string what = request->String(field::kWhat);
  if (what == tap::kPreprocess) return TapPreprocess(request, model);
  if (what == tap::kEmbed) return TapEmbed(request, model, cancelled);
  if (what == tap::kLayers) return TapLayers(request, model, cancelled);
  if (what == tap::kLogits) return TapLogits(request, model, cancelled);
  for (const char* known :
       {tap::kVisionEmbed, tap::kVisionBlock, tap::kVisionNorm, tap::kResampler}) {
    if (what == known) return TapVision(what, request, model);
  }
  request->Refuse("unknown tap " + what);
}

}  // namespace

Shape RunTap(Fields* request, Model* model, const Cancelled& cancelled) {
  const Shape shape = Dispatch(request, model, cancelled);
  model->blocks().ReleaseMemory();
  return shape;
}

}  // namespace minicpmv
