// How a picture is cut into an overview and slices, as MiniCPM-V 2.0 does.
#ifndef MINICPMV_ENGINE_SLICES_H_
#define MINICPMV_ENGINE_SLICES_H_

#include <cstdint>

#include "runtime/engine/picture_file.h"

namespace minicpmv {

// Fields are named as in `convert/checkpoint/config.py`.
struct SliceRules {
  int64_t max_slice_nums;    // at least 1: every picture is one image
  int64_t scale_resolution;  // pixels; an image has about the area of a square with this side
  int64_t patch_size;        // pixels
};

// The tokens around a picture's slices in a prompt.
struct SliceTags {
  int32_t start, end;
};

// Columns and rows of slices; 0 and 0 if the overview is the only image.
struct Grid {
  int64_t columns = 0, rows = 0;

  bool empty() const { return columns == 0; }
  int64_t images() const { return 1 + columns * rows; }  // with the overview
};

struct Cut {
  Size overview;  // of the whole picture
  Grid grid;
  Size cell;  // of one slice; the overview's where there are none

  int64_t images() const { return grid.images(); }
  // What the picture is resized to before it is cut into cells, row by row.
  Size refined() const { return {grid.columns * cell.width, grid.rows * cell.height}; }

  // Of image 0, the overview, or of a slice.
  Size ImageSize(int64_t image) const { return image == 0 ? overview : cell; }
  // What the picture is resized to, of which the image is a part.
  Size Whole(int64_t image) const { return image == 0 ? overview : refined(); }
  Region Part(int64_t image) const;
};

// Chooses the grid and the sizes for a picture; `runtime/inputs/slices.py` has the same rules.
// Throws EngineError (invalid_picture): the picture is too long and narrow.
Cut PlanCut(Size picture, const SliceRules& rules);

// Returns the most patches that an image of a cut has.
int64_t MostPatches(const SliceRules& rules);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_SLICES_H_
