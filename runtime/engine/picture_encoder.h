// Encodes a picture to image tokens: preprocessing, vision encoder, resampler.
#ifndef MINICPMV_ENGINE_PICTURE_ENCODER_H_
#define MINICPMV_ENGINE_PICTURE_ENCODER_H_

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/engine/blocks.h"
#include "runtime/engine/encoded_picture.h"
#include "runtime/engine/image_preprocessor.h"
#include "runtime/engine/picture_file.h"
#include "runtime/engine/position_tables.h"
#include "runtime/engine/slices.h"

namespace minicpmv {

// Callbacks of a long operation: progress reports and cancellation.
struct WorkHooks {
  std::function<void(int64_t done, int64_t total)> progress;
  std::function<bool()> cancelled;
};

// Caches the most recently used pictures. Images are identified by their resized pixels, so an
// image that two pictures share is encoded once: a picture's overview, for one, when the same
// picture is cut into another number of slices.
class PictureEncoder {
 public:
  // blocks: of a model with a vision encoder; must outlive this object.
  explicit PictureEncoder(const Blocks& blocks);

  // Encodes those images of a picture that are not cached.
  // cut: the model's plan for this picture. hooks: progress counts the blocks of all images, and is
  // reported only if something is computed; cancelled is polled before each block.
  // Returns its image tokens, valid until the next Encode or Remember; nullptr if cancelled, and
  // then the images that were complete stay cached until the next Encode.
  const EncodedPicture* Encode(const RgbPicture& picture, const Cut& cut, const WorkHooks& hooks);

  // Encodes a picture without reading or writing the cache.
  // Returns nullopt if cancelled.
  std::optional<EncodedPicture> Compute(const RgbPicture& picture, const Cut& cut,
                                        const WorkHooks& hooks);

  // Adds an encoded picture to the cache and evicts the least recently used one.
  // Returns it, valid until the next Encode or Remember.
  const EncodedPicture* Remember(EncodedPicture picture);

  // Returns a cached picture, valid until the next Encode or Remember; nullptr if there is none.
  const EncodedPicture* Find(uint64_t key);

  // Returns the vision encoder's input for an image of a picture: (3, height, width).
  Tensor Preprocess(const RgbPicture& picture, const Cut& cut, int64_t image);

  PositionTables& positions() { return positions_; }

 private:
  using Image = std::shared_ptr<const EncodedImage>;

  // Resizes all images of a picture into resized_ and computes their keys. Returns false if
  // cancelled.
  bool ResizeAll(const RgbPicture& picture, const Cut& cut, const std::function<bool()>& cancelled);
  // Encodes the resized images. known: returns an image that need not be encoded, or null.
  // Returns the complete images; fewer than all if cancelled.
  std::vector<Image> Run(const Cut& cut, const WorkHooks& hooks,
                         const std::function<Image(uint64_t key)>& known);
  // Encodes pixels_. progress: receives the number of blocks done.
  // Returns the image tokens (Q, D); empty if cancelled.
  std::vector<float> RunBlocks(Size image, const WorkHooks& hooks, int64_t done, int64_t total);
  // Returns a cached image; null if there is none.
  Image FindImage(uint64_t key) const;
  // Returns pixels_ as the vision encoder's input.
  Tensor Pixels(Size image) const;

  const Blocks& blocks_;
  ImagePreprocessor preprocessor_;
  PositionTables positions_;
  AlignedBuffer pixels_;                // (3, height, width) float32, of the largest image
  std::vector<uint8_t> resized_;        // (height, width, 3) of each image, concatenated
  std::vector<uint64_t> keys_;          // of these images
  std::list<EncodedPicture> pictures_;  // most recently used first
  std::vector<Image> unfinished_;       // complete images of a picture that was cancelled
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_PICTURE_ENCODER_H_
