#include "runtime/engine/slices.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "runtime/engine/error.h"

// A fused multiply-add would round differently from one processor to the next.
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

namespace minicpmv {
namespace {

// Rounds to a multiple of a unit, at least one; halves to the even multiple, as Python's `round`.
int64_t Nearest(double length, int64_t unit) {
  const double multiple = std::nearbyint(length / static_cast<double>(unit));
  return std::max<int64_t>(static_cast<int64_t>(multiple) * unit, unit);
}

// Returns the size with the same shape, about the area of a square, and whole patches.
Size ImageSize(double width, double height, const SliceRules& rules) {
  const double ratio = width / height;
  const auto side = static_cast<double>(rules.scale_resolution);
  const double scaled_height = std::trunc(side / std::sqrt(ratio));
  const double scaled_width = std::trunc(scaled_height * ratio);
  return {Nearest(scaled_width, rules.patch_size), Nearest(scaled_height, rules.patch_size)};
}

// Returns columns and rows whose shape is nearest to the picture's; of equals the first.
Grid BestGrid(Size picture, int64_t wanted, int64_t most) {
  const double shape =
      std::log(static_cast<double>(picture.width) / static_cast<double>(picture.height));
  double least = std::numeric_limits<double>::infinity();
  Grid best{1, 1};
  for (int64_t count = wanted - 1; count <= std::min(wanted + 1, most); ++count) {
    if (count == 1) continue;
    for (int64_t columns = 1; columns <= count; ++columns) {
      if (count % columns != 0) continue;
      const int64_t rows = count / columns;
      const double error =
          std::abs(shape - std::log(static_cast<double>(columns) / static_cast<double>(rows)));
      if (error < least) {
        least = error;
        best = {columns, rows};
      }
    }
  }
  return best;
}

void Check(Size picture, Size image, const SliceRules& rules) {
  const int64_t patches = image.area() / (rules.patch_size * rules.patch_size);
  if (patches <= MostPatches(rules)) return;
  throw EngineError(error_code::kInvalidPicture,
                    std::to_string(picture.width) + " x " + std::to_string(picture.height) +
                        " pixels are too long and narrow: an image of it would have " +
                        std::to_string(patches) + " patches, of which " +
                        std::to_string(MostPatches(rules)) +
                        " are encoded at most; cut the picture");
}

}  // namespace

int64_t MostPatches(const SliceRules& rules) {
  // What an image has whose shorter side is half a patch, rounded up.
  return 2 * rules.scale_resolution * rules.scale_resolution /
         (rules.patch_size * rules.patch_size);
}

Region Cut::Part(int64_t image) const {
  if (image == 0) return {0, 0, overview};
  const int64_t slice = image - 1;
  return {slice % grid.columns * cell.width, slice / grid.columns * cell.height, cell};
}

Cut PlanCut(Size picture, const SliceRules& rules) {
  const int64_t area = rules.scale_resolution * rules.scale_resolution;
  const int64_t wanted = std::min((picture.area() + area - 1) / area, rules.max_slice_nums);
  const auto width = static_cast<double>(picture.width);
  const auto height = static_cast<double>(picture.height);
  const Size overview = ImageSize(width, height, rules);
  Check(picture, overview, rules);
  if (wanted <= 1) return {overview, {}, overview};
  const Grid grid = BestGrid(picture, wanted, rules.max_slice_nums);
  // A cell's share of the picture, whose sides are first made multiples of the grid.
  const Size cell =
      ImageSize(static_cast<double>(Nearest(width, grid.columns)) / static_cast<double>(grid.columns),
                static_cast<double>(Nearest(height, grid.rows)) / static_cast<double>(grid.rows),
                rules);
  Check(picture, cell, rules);
  return {overview, grid, cell};
}

}  // namespace minicpmv
