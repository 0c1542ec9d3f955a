#include "runtime/engine/positions.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "runtime/engine/resize_axis.h"

namespace minicpmv {
namespace {

constexpr double kLongestWave = 10000.0;

// Adds the inputs' rows of an output, each times its weight. inputs: (n, width); sum: (width).
template <typename Number>
void AddRows(const ResizeAxis& axis, int64_t output, const Number* inputs, int64_t width,
             double* sum) {
  std::fill_n(sum, width, 0.0);
  for (int64_t i = axis.first(output); i < axis.end(output); ++i) {
    const double weight = axis.Weight(output, i);
    const Number* row = inputs + i * width;
    for (int64_t k = 0; k < width; ++k) sum[k] += weight * static_cast<double>(row[k]);
  }
}

}  // namespace

void ResamplePositions(const float* stored, int64_t side, int64_t width, Size patches,
                       float* positions) {
  if (patches.width == side && patches.height == side) {
    std::copy_n(stored, side * side * width, positions);
    return;
  }
  const ResizeAxis across(side, patches.width, 0, patches.width);
  const ResizeAxis down(side, patches.height, 0, patches.height);
  std::vector<double> line(static_cast<size_t>(side * width));  // a row, `side` columns of it
  std::vector<double> position(static_cast<size_t>(width));
  for (int64_t row = 0; row < patches.height; ++row) {
    AddRows(down, row, stored, side * width, line.data());
    for (int64_t column = 0; column < patches.width; ++column) {
      AddRows(across, column, line.data(), width, position.data());
      positions = std::transform(position.begin(), position.end(), positions,
                                 [](double value) { return static_cast<float>(value); });
    }
  }
}

void EncodePlaces(int64_t count, int64_t width, float* encoded) {
  const int64_t half = width / 2;
  std::vector<double> frequencies(static_cast<size_t>(half));
  for (int64_t i = 0; i < half; ++i) {
    const double turn = static_cast<double>(i) / static_cast<double>(half);
    frequencies[static_cast<size_t>(i)] = std::pow(kLongestWave, -turn);
  }
  for (int64_t place = 0; place < count; ++place, encoded += width) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(place) * frequencies[static_cast<size_t>(i)];
      encoded[i] = static_cast<float>(std::sin(angle));
      encoded[half + i] = static_cast<float>(std::cos(angle));
    }
  }
}

}  // namespace minicpmv
