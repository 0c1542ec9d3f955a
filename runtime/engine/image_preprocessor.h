// Converts a picture's pixels to the vision encoder's input, as the original model does.
#ifndef MINICPMV_ENGINE_IMAGE_PREPROCESSOR_H_
#define MINICPMV_ENGINE_IMAGE_PREPROCESSOR_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "runtime/engine/picture_file.h"

namespace minicpmv {

// Resizes to a square S x S with the arithmetic of Pillow's antialiased bicubic filter:
// horizontally, then vertically, each rounded to 8 bits, with fixed-point weights. The result is
// bit-exact. Rows of the picture are read once, from the top, and only their sums are kept: memory
// is 15 bytes for each of the S * S pixels plus 8 MiB for weights, whatever the picture's size.
class ImagePreprocessor {
 public:
  // image_size: S, pixels.
  explicit ImagePreprocessor(int64_t image_size);

  int64_t image_size() const { return image_size_; }

  // Resizes a picture of at least one pixel; the aspect ratio is not kept.
  // cancelled: polled every few rows; true aborts.
  // Returns resized pixels (S, S, 3), valid until the next call; nullptr if cancelled.
  const uint8_t* Resize(const RgbPicture& picture, const std::function<bool()>& cancelled);

  // Maps resized pixels (S, S, 3) from 0..255 to -1..1: pixels (3, S, S).
  void Normalize(const uint8_t* resized, float* pixels) const;

 private:
  const int64_t image_size_;
  std::vector<int32_t> weights_;  // of the current columns, concatenated
  std::vector<uint8_t> row_;      // (S, 3) one row of the picture, resized horizontally
  std::vector<int32_t> sums_;     // (S, S, 3) fixed point
  std::vector<uint8_t> resized_;  // (S, S, 3)
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_IMAGE_PREPROCESSOR_H_
