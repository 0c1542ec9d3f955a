// One direction of an antialiased bicubic resize, as Pillow and PyTorch compute it.
#ifndef MINICPMV_ENGINE_RESIZE_AXIS_H_
#define MINICPMV_ENGINE_RESIZE_AXIS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace minicpmv {

inline constexpr int kFixedBits = 22;  // fractional bits of a weight in fixed point, as in Pillow

// Says which inputs contribute to an output, and with which weights. Shrinking widens the filter.
class ResizeAxis {
 public:
  // in_size, out_size: of the whole axis. begin, count: the outputs that are asked for, at least
  // one; they are numbered from 0 below.
  ResizeAxis(int64_t in_size, int64_t out_size, int64_t begin, int64_t count);

  int64_t first(int64_t output) const { return At(output).first; }
  int64_t end(int64_t output) const { return At(output).end; }

  // Returns the weight of an input, first() to end(); an output's weights sum to 1.
  double Weight(int64_t output, int64_t input) const;

  // Returns it in fixed point.
  int32_t FixedWeight(int64_t output, int64_t input) const;

 private:
  struct Output {
    double center = 0;
    int64_t first = 0, end = 0;  // inputs
    double total = 0;            // sum of the unscaled weights
  };

  const Output& At(int64_t output) const { return outputs_[static_cast<size_t>(output)]; }
  double Unscaled(const Output& output, int64_t input) const;

  std::vector<Output> outputs_;
  double step_ = 1;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_RESIZE_AXIS_H_
