// Encodes a picture to image tokens: preprocessing, vision encoder, resampler.
#ifndef MINICPMV_ENGINE_PICTURE_ENCODER_H_
#define MINICPMV_ENGINE_PICTURE_ENCODER_H_

#include <cstdint>
#include <functional>
#include <list>
#include <optional>
#include <vector>

#include "runtime/engine/blocks.h"
#include "runtime/engine/image_preprocessor.h"
#include "runtime/engine/picture_file.h"

namespace minicpmv {

// Callbacks of a long operation: progress reports and cancellation.
struct WorkHooks {
  std::function<void(int64_t done, int64_t total)> progress;
  std::function<bool()> cancelled;
};

// A picture's image tokens, as the cache keeps them.
struct EncodedPicture {
  uint64_t key;               // hash of the resized pixels; not 0
  std::vector<float> tokens;  // (Q, D)
};

// Caches the most recently used pictures, identified by their resized pixels.
class PictureEncoder {
 public:
  // blocks: of a model with a vision encoder; must outlive this object.
  explicit PictureEncoder(const Blocks& blocks);

  // Encodes a picture, unless it is cached.
  // hooks: progress counts blocks; cancelled is polled before each.
  // Returns its image tokens, valid until the next Encode or Remember; nullptr if cancelled.
  const EncodedPicture* Encode(const RgbPicture& picture, const WorkHooks& hooks);

  // Encodes a picture without reading or writing the cache.
  // Returns nullopt if cancelled.
  std::optional<EncodedPicture> Compute(const RgbPicture& picture, const WorkHooks& hooks);

  // Adds an encoded picture to the cache and evicts the least recently used one.
  // Returns it, valid until the next Encode or Remember.
  const EncodedPicture* Remember(EncodedPicture picture);

  // Returns a cached picture, valid until the next Encode or Remember; nullptr if there is none.
  const EncodedPicture* Find(uint64_t key);

  // Returns the vision encoder's input for a picture: (3, S, S).
  Tensor Preprocess(const RgbPicture& picture);

 private:
  // Encodes resized pixels. Returns nullopt if cancelled.
  std::optional<EncodedPicture> Run(const uint8_t* resized, const WorkHooks& hooks);
  // Returns the image tokens (Q, D) of pixels_; empty if cancelled.
  std::vector<float> RunBlocks(const WorkHooks& hooks) const;
  // Returns the size of a resized picture, bytes.
  size_t resized_bytes() const { return pixels_.size() / sizeof(float); }

  const Blocks& blocks_;
  const Size size_;  // of a resized picture
  ImagePreprocessor preprocessor_;
  AlignedBuffer pixels_;                // (3, S, S) float32
  std::list<EncodedPicture> pictures_;  // most recently used first
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_PICTURE_ENCODER_H_
