#include "runtime/engine/image_preprocessor.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "runtime/engine/error.h"

// A fused multiply-add would round differently from one processor to the next.
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

namespace minicpmv {
namespace {

constexpr int kFixedBits = 22;  // fractional bits of a weight
constexpr int32_t kHalf = 1 << (kFixedBits - 1);
constexpr int64_t kWeightsKept = 1 << 21;  // 8 MiB of weights at a time
constexpr double kBicubicSupport = 2.0;    // pixels on each side
constexpr int64_t kRowsBetweenPolls = 64;  // whether it is cancelled

// Keys' bicubic kernel with a = -0.5.
double Bicubic(double x) {
  constexpr double kA = -0.5;
  x = std::abs(x);
  if (x < 1) return ((kA + 2) * x - (kA + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * kA;
  return 0;
}

uint8_t ToByte(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kFixedBits, 0, 255)); }

// One direction of a resize: which inputs contribute to an output, and their weights.
class Axis {
 public:
  Axis(int64_t in_size, int64_t out_size) : outputs_(static_cast<size_t>(out_size)) {
    const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
    const double filter_scale = std::max(scale, 1.0);  // shrinking widens the filter
    const double support = kBicubicSupport * filter_scale;
    step_ = 1.0 / filter_scale;
    for (int64_t i = 0; i < out_size; ++i) {
      Output& output = outputs_[static_cast<size_t>(i)];
      output.center = (static_cast<double>(i) + 0.5) * scale;
      output.first = std::max<int64_t>(static_cast<int64_t>(output.center - support + 0.5), 0);
      output.end = std::min(static_cast<int64_t>(output.center + support + 0.5), in_size);
      for (int64_t k = output.first; k < output.end; ++k) output.total += Unscaled(output, k);
    }
  }

  int64_t first(int64_t output) const { return At(output).first; }
  int64_t end(int64_t output) const { return At(output).end; }

  // Returns the weight of an input, first() to end(), in fixed point.
  int32_t Weight(int64_t output, int64_t input) const {
    const Output& o = At(output);
    double weight = Unscaled(o, input);
    if (o.total != 0) weight /= o.total;
    weight *= 1 << kFixedBits;
    return static_cast<int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
  }

 private:
  struct Output {
    double center = 0;
    int64_t first = 0, end = 0;  // inputs
    double total = 0;            // sum of the unscaled weights
  };

  const Output& At(int64_t output) const { return outputs_[static_cast<size_t>(output)]; }

  double Unscaled(const Output& output, int64_t input) const {
    const auto place = static_cast<double>(input);
    return Bicubic((place - output.center + 0.5) * step_);
  }

  std::vector<Output> outputs_;
  double step_ = 1;
};

// Resizes the columns from `begin` to `end` of one row (width, 3) into row (S, 3).
void ResizeRow(const Axis& across, int64_t begin, int64_t end, const uint8_t* pixels,
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
int64_t ColumnsFrom(const Axis& across, int64_t begin, int64_t size) {
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

const uint8_t* ImagePreprocessor::Resize(const RgbPicture& picture, Size size,
                                         const std::function<bool()>& cancelled) {
  const Axis across(picture.width, size.width), down(picture.height, size.height);
  row_.resize(static_cast<size_t>(3 * size.width));
  sums_.assign(static_cast<size_t>(3 * size.area()), kHalf);
  resized_.resize(sums_.size());
  // All columns at once, unless the picture is so wide that their weights do not fit.
  for (int64_t begin = 0, end = 0; begin < size.width; begin = end) {
    end = ColumnsFrom(across, begin, size.width);
    weights_.clear();
    for (int64_t x = begin; x < end; ++x) {
      for (int64_t k = across.first(x); k < across.end(x); ++k) {
        weights_.push_back(across.Weight(x, k));
      }
    }
    int64_t top = 0;  // the first resized row that later picture rows still contribute to
    for (int64_t y = 0; y < picture.height; ++y) {
      if (y % kRowsBetweenPolls == 0 && cancelled()) return nullptr;
      ResizeRow(across, begin, end, picture.pixels + 3 * picture.width * y, weights_.data(),
                row_.data());
      while (top < size.height && down.end(top) <= y) ++top;
      for (int64_t out = top; out < size.height && down.first(out) <= y; ++out) {
        const int32_t weight = down.Weight(out, y);
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

void ImagePreprocessor::Normalize(const uint8_t* resized, Size size, int64_t row_pixels,
                                  float* pixels) {
  float levels[256];
  for (int i = 0; i < 256; ++i) levels[i] = (static_cast<float>(i) / 255.0F - 0.5F) / 0.5F;
  for (int64_t channel = 0; channel < 3; ++channel) {
    for (int64_t y = 0; y < size.height; ++y) {
      const uint8_t* row = resized + 3 * row_pixels * y + channel;
      for (int64_t x = 0; x < size.width; ++x) *pixels++ = levels[row[3 * x]];
    }
  }
}

}  // namespace minicpmv
