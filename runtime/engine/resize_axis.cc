#include "runtime/engine/resize_axis.h"

#include <algorithm>
#include <cmath>

// A fused multiply-add would round differently from one processor to the next.
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

namespace minicpmv {
namespace {

constexpr double kSupport = 2.0;  // inputs on each side of an output

// Keys' bicubic kernel with a = -0.5.
double Bicubic(double x) {
  constexpr double kA = -0.5;
  x = std::abs(x);
  if (x < 1) return ((kA + 2) * x - (kA + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * kA;
  return 0;
}

}  // namespace

ResizeAxis::ResizeAxis(int64_t in_size, int64_t out_size, int64_t begin, int64_t count)
    : outputs_(static_cast<size_t>(count)) {
  const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  const double filter_scale = std::max(scale, 1.0);
  const double support = kSupport * filter_scale;
  step_ = 1.0 / filter_scale;
  for (int64_t i = 0; i < count; ++i) {
    Output& output = outputs_[static_cast<size_t>(i)];
    output.center = (static_cast<double>(begin + i) + 0.5) * scale;
    output.first = std::max<int64_t>(static_cast<int64_t>(output.center - support + 0.5), 0);
    output.end = std::min(static_cast<int64_t>(output.center + support + 0.5), in_size);
    for (int64_t k = output.first; k < output.end; ++k) output.total += Unscaled(output, k);
  }
}

double ResizeAxis::Weight(int64_t output, int64_t input) const {
  const Output& o = At(output);
  const double weight = Unscaled(o, input);
  return o.total != 0 ? weight / o.total : weight;
}

int32_t ResizeAxis::FixedWeight(int64_t output, int64_t input) const {
  const double weight = Weight(output, input) * (1 << kFixedBits);
  return static_cast<int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
}

double ResizeAxis::Unscaled(const Output& output, int64_t input) const {
  return Bicubic((static_cast<double>(input) - output.center + 0.5) * step_);
}

}  // namespace minicpmv
