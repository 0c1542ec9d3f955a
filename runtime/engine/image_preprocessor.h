// Converts a picture's pixels to the vision encoder's input, as the original model does.
#ifndef MINICPMV_ENGINE_IMAGE_PREPROCESSOR_H_
#define MINICPMV_ENGINE_IMAGE_PREPROCESSOR_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "runtime/engine/picture_file.h"

namespace minicpmv {

// Resizes with the arithmetic of Pillow's antialiased bicubic filter: horizontally, then
// vertically, each rounded to 8 bits, with fixed-point weights. The result is bit-exact. Rows of
// the picture are read once, from the top, and only their sums are kept: memory is 15 bytes for
// each pixel of the result, a row, and 8 MiB for weights, whatever the picture's size.
class ImagePreprocessor {
 public:
  // most_pixels: of a result; memory for it is reserved.
  explicit ImagePreprocessor(int64_t most_pixels);

  // Resizes a picture of at least one pixel and returns a part of the result; only that part is
  // computed. The aspect ratio is not kept.
  // whole: the size of the whole result. cancelled: polled every few rows; true aborts.
  // Returns pixels (height, width, 3) of the part, valid until the next call; nullptr if cancelled.
  const uint8_t* Resize(const RgbPicture& picture, Size whole, const Region& part,
                        const std::function<bool()>& cancelled);

  // Maps resized pixels (height, width, 3) from 0..255 to -1..1: pixels (3, height, width).
  static void Normalize(const uint8_t* resized, Size size, float* pixels);

 private:
  std::vector<int32_t> weights_;  // of the current columns, concatenated
  std::vector<uint8_t> row_;      // (width, 3) one row of the picture, resized horizontally
  std::vector<int32_t> sums_;     // (height, width, 3) fixed point
  std::vector<uint8_t> resized_;  // (height, width, 3)
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_IMAGE_PREPROCESSOR_H_
