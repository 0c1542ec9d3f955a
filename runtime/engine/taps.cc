#include "runtime/engine/taps.h"

#include <algorithm>
#include <string>
#include <vector>

#include "runtime/engine/chat_fields.h"
#include "runtime/engine/decoder.h"
#include "runtime/engine/float_file.h"
#include "runtime/engine/kv_cache.h"
#include "runtime/engine/picture_fields.h"
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

Line LineOf(const Shape& shape) { return Line().Set(field::kShape, ToJson(shape)); }

Shape WriteWhole(const Tensor& tensor, const std::string& path) {
  FloatOutput(path).Write(tensor, 0);
  return ShapeOf(tensor);
}

// Takes the shape of an image from two fields that hold its sides in units of `unit` pixels; a model
// without slices has one shape, and no such fields.
Size TakeImageSize(Fields* request, const VisionConfig& c, const char* width, const char* height,
                   int64_t unit) {
  if (!c.slices) return {c.image_size, c.image_size};
  const int64_t most = c.most_patches() * c.patch_size / unit;
  const Size sides{request->Integer(width, 1), request->Integer(height, 1)};
  const Size image{std::min(sides.width, most) * unit, std::min(sides.height, most) * unit};
  if (sides.width > most || sides.height > most || image.width % c.patch_size != 0 ||
      image.height % c.patch_size != 0 || c.Patches(image).area() > c.most_patches()) {
    request->Refuse("not the shape of an image: expected whole patches of " +
                    std::to_string(c.patch_size) + " pixels, at most " +
                    std::to_string(c.most_patches()) + " of them");
  }
  return image;
}

Shape TapVisionEmbed(Fields* request, Model* model) {
  PositionTables& positions = model->pictures().positions();
  const VisionConfig& c = *model->config().vision;
  const Files files = TakeFiles(request);
  const Size image = TakeImageSize(request, c, field::kWidth, field::kHeight, 1);
  request->RefuseUnknown();
  const FloatInput input(files.input, {3, image.height, image.width});
  const Tensor x =
      model->blocks().VisionEmbed(input.Whole(), positions.Positions(c.Patches(image)));
  return WriteWhole(x, files.output);
}

Shape TapResampler(Fields* request, Model* model) {
  PositionTables& positions = model->pictures().positions();
  const VisionConfig& c = *model->config().vision;
  const Files files = TakeFiles(request);
  const Size patches =
      c.Patches(TakeImageSize(request, c, field::kColumns, field::kRows, c.patch_size));
  request->RefuseUnknown();
  const FloatInput input(files.input, {patches.area(), c.embed_dim});
  const Tensor x = model->blocks().Resample(input.Whole(), positions.KeyPositions(patches));
  return WriteWhole(x, files.output);
}

// Runs a stage whose inputs and outputs are patches.
Shape TapPatches(const std::string& what, Fields* request, Model* model) {
  model->pictures();  // throws if there is no vision encoder
  const VisionConfig& c = *model->config().vision;
  const bool is_block = what == tap::kVisionBlock;
  const Files files = TakeFiles(request);
  const int64_t index = is_block ? request->Integer(field::kIndex, 0) : 0;
  request->RefuseUnknown();
  if (index >= c.depth) request->Refuse("there are only " + std::to_string(c.depth) + " blocks");
  const FloatInput input(files.input, {c.slices ? -1 : c.most_patches(), c.embed_dim});
  if (const int64_t count = input.shape()[0]; count < 1 || count > c.most_patches()) {
    throw EngineError(error_code::kFileError, files.input + ": has " + std::to_string(count) +
                                                  " patches; expected 1 to " +
                                                  std::to_string(c.most_patches()));
  }
  const Blocks& blocks = model->blocks();
  return WriteWhole(
      is_block ? blocks.VisionBlock(index, input.Whole()) : blocks.VisionNorm(input.Whole()),
      files.output);
}

Shape TapPreprocess(Fields* request, Model* model) {
  PictureEncoder& pictures = model->pictures();
  const VisionConfig& c = *model->config().vision;
  const Files files = TakeFiles(request);
  const auto max_slices = TakeMaxSlices(request, c);
  const int64_t image = request->OptionalInteger(field::kIndex, 0).value_or(0);
  request->RefuseUnknown();
  const PictureFile file(files.input);
  const RgbPicture& picture = file.picture();
  const Cut cut = c.Plan({picture.width, picture.height}, max_slices);
  if (image >= cut.images()) {
    request->Refuse("the picture has only " + std::to_string(cut.images()) + " images");
  }
  return WriteWhole(pictures.Preprocess(picture, cut, image), files.output);
}

Line TapCut(Fields* request, Model* model) {
  model->pictures();  // throws if there is no vision encoder
  const VisionConfig& c = *model->config().vision;
  const Files files = TakeFiles(request);
  const auto max_slices = TakeMaxSlices(request, c);
  request->RefuseUnknown();
  const PictureFile file(files.input);
  const RgbPicture& picture = file.picture();
  const Cut cut = c.Plan({picture.width, picture.height}, max_slices);
  const Shape shape{cut.images(), 2};
  const AlignedBuffer sizes(static_cast<size_t>(2 * cut.images()) * sizeof(float));
  for (int64_t i = 0; i < cut.images(); ++i) {
    const Size size = cut.ImageSize(i);
    sizes.floats()[2 * i] = static_cast<float>(size.width);
    sizes.floats()[2 * i + 1] = static_cast<float>(size.height);
  }
  WriteWhole(Borrow(sizes.data(), shape, kFloat32), files.output);
  Line line = LineOf(shape);
  SetGrid(cut.grid, &line);
  return line;
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

Line Dispatch(Fields* request, Model* model, const Cancelled& cancelled) {
  const std::string what = request->String(field::kWhat);
  if (what == tap::kCut) return TapCut(request, model);
  if (what == tap::kPreprocess) return LineOf(TapPreprocess(request, model));
  if (what == tap::kVisionEmbed) return LineOf(TapVisionEmbed(request, model));
  if (what == tap::kVisionBlock || what == tap::kVisionNorm) {
    return LineOf(TapPatches(what, request, model));
  }
  if (what == tap::kResampler) return LineOf(TapResampler(request, model));
  if (what == tap::kEmbed) return LineOf(TapEmbed(request, model, cancelled));
  if (what == tap::kLayers) return LineOf(TapLayers(request, model, cancelled));
  if (what == tap::kLogits) return LineOf(TapLogits(request, model, cancelled));
  request->Refuse("unknown tap " + what);
}

}  // namespace

Line RunTap(Fields* request, Model* model, const Cancelled& cancelled) {
  const Line line = Dispatch(request, model, cancelled);
  model->blocks().ReleaseMemory();
  return line;
}

}  // namespace minicpmv
