#include "runtime/engine/image_preprocessor.h"

#include <algorithm>
#include <cstddef>

#include "runtime/engine/resize_axis.h"

namespace minicpmv {
namespace {

constexpr int32_t kHalf = 1 << (kFixedBits - 1);  // rounds a sum to the nearest level
constexpr int64_t kWeightsKept = 1 << 21;  // 8 MiB of weights at a time
constexpr int64_t kRowsBetweenPolls = 64;  // whether it is cancelled

uint8_t ToByte(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kFixedBits, 0, 255)); }

// Resizes the columns from `begin` to `end` of one row (width, 3) into row (S, 3).
void ResizeRow(const ResizeAxis& across, int64_t begin, int64_t end, const uint8_t* pixels,
               const int32_t* weights, uint8_t* row) {
  for (int64_t x = begin; x < end; ++x) {
    const int64_t first = across.first(x), count = across.end(x) - first;
    const uint8_t* pixel = pixels + 3 * first;
    int32_t red = kHalf, green = kHalf, blue = kHalf;
    for (int64_t k = 0; k < count; ++k, pixel += 3) {
      red += pixel[0] * weights[k];
      green += pixel[1] * weights[k];
      blue += pixel[2] * weights[k];
    }
    weights += count;
    row[3 * x] = ToByte(red);
    row[3 * x + 1] = ToByte(green);
    row[3 * x + 2] = ToByte(blue);
  }
}

// Returns the end of the columns from `begin` on whose weights fit into the buffer; at least one.
int64_t ColumnsFrom(const ResizeAxis& across, int64_t begin, int64_t size) {
  int64_t end = begin, kept = 0;
  while (end < size) {
    kept += across.end(end) - across.first(end);
    if (end > begin && kept > kWeightsKept) break;
    ++end;
  }
  return end;
}

}  // namespace

ImagePreprocessor::ImagePreprocessor(int64_t most_pixels) {
  const auto most = static_cast<size_t>(3 * most_pixels);
  weights_.reserve(kWeightsKept);  // pages that are not touched cost no memory
  row_.reserve(most);
  sums_.reserve(most);
  resized_.reserve(most);
}

const uint8_t* ImagePreprocessor::Resize(const RgbPicture& picture, Size whole,
                                         const Region& part,
                                         const std::function<bool()>& cancelled) {
  const Size size = part.size;
  const ResizeAxis across(picture.width, whole.width, part.left, size.width);
  const ResizeAxis down(picture.height, whole.height, part.top, size.height);
  row_.resize(static_cast<size_t>(3 * size.width));
  sums_.assign(static_cast<size_t>(3 * size.area()), kHalf);
  resized_.resize(sums_.size());
  // All columns at once, unless the picture is so wide that their weights do not fit.
  for (int64_t begin = 0, end = 0; begin < size.width; begin = end) {
    end = ColumnsFrom(across, begin, size.width);
    weights_.clear();
    for (int64_t x = begin; x < end; ++x) {
      for (int64_t k = across.first(x); k < across.end(x); ++k) {
        weights_.push_back(across.FixedWeight(x, k));
      }
    }
    int64_t top = 0;  // the first resized row that later picture rows still contribute to
    for (int64_t y = down.first(0); y < down.end(size.height - 1); ++y) {
      if (y % kRowsBetweenPolls == 0 && cancelled()) return nullptr;
      ResizeRow(across, begin, end, picture.pixels + 3 * picture.width * y, weights_.data(),
                row_.data());
      while (top < size.height && down.end(top) <= y) ++top;
      for (int64_t out = top; out < size.height && down.first(out) <= y; ++out) {
        const int32_t weight = down.FixedWeight(out, y);
        int32_t* sums = sums_.data() + 3 * size.width * out;
        for (int64_t i = 3 * begin; i < 3 * end; ++i) {
          sums[i] += row_[static_cast<size_t>(i)] * weight;
        }
      }
    }
  }
  std::transform(sums_.begin(), sums_.end(), resized_.begin(), ToByte);
  return resized_.data();
}

void ImagePreprocessor::Normalize(const uint8_t* resized, Size size, float* pixels) {
  float levels[256];
  for (int i = 0; i < 256; ++i) levels[i] = (static_cast<float>(i) / 255.0F - 0.5F) / 0.5F;
  for (int64_t channel = 0; channel < 3; ++channel) {
    for (int64_t y = 0; y < size.height; ++y) {
      const uint8_t* row = resized + 3 * size.width * y + channel;
      for (int64_t x = 0; x < size.width; ++x) *pixels++ = levels[row[3 * x]];
    }
  }
}

}  // namespace minicpmv
