// From a picture to its image tokens: preprocessing, vision encoder, resampler.
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

// How long work tells what it does, and hears that nobody wants it any more.
struct WorkHooks {
  std::function<void(int64_t done, int64_t total)> progress;
  std::function<bool()> cancelled;
};

// Image tokens that are remembered.
struct EncodedPicture {
  uint64_t key;               // follows from the resized pixels; not 0
  std::vector<float> tokens;  // (Q, D)
};

// Pictures are known by their resized pixels; the latest few stay encoded.
class PictureEncoder {
 public:
  // blocks: of a model with a vision encoder; outlives this.
  explicit PictureEncoder(const Blocks& blocks);

  // Encodes a picture, unless it is remembered.
  // hooks: progress counts blocks; cancelled is asked before each.
  // Returns its image tokens, valid until the next Encode or Remember; nullptr if cancelled.
  const EncodedPicture* Encode(const RgbPicture& picture, const WorkHooks& hooks);

  // Encodes a picture whether it is remembered or not, and does not remember it.
  // Returns nothing if cancelled.
  std::optional<EncodedPicture> Compute(const RgbPicture& picture, const WorkHooks& hooks);

  // Remembers what was encoded elsewhere, in place of the picture used longest ago.
  // Returns it, valid until the next Encode or Remember.
  const EncodedPicture* Remember(EncodedPicture picture);

  // Returns what is remembered, valid until the next Encode or Remember; nullptr if nothing is.
  const EncodedPicture* Find(uint64_t key);

  // Returns the vision encoder's input for a picture: (3, S, S).
  Tensor Preprocess(const RgbPicture& picture);

 private:
  // Encodes resized pixels. Returns nothing if cancelled.
  std::optional<EncodedPicture> Run(const uint8_t* resized, const WorkHooks& hooks);
  // Returns image tokens (Q, D) of pixels_; none if cancelled.
  std::vector<float> RunBlocks(const WorkHooks& hooks) const;
  // Returns the size of a resized picture, bytes.
  size_t resized_bytes() const { return pixels_.size() / sizeof(float); }

  const Blocks& blocks_;
  ImagePreprocessor preprocessor_;
  AlignedBuffer pixels_;                // (3, S, S) float32
  std::list<EncodedPicture> pictures_;  // the latest first
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_PICTURE_ENCODER_H_
