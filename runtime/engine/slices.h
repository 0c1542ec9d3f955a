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

struct Cut {
  Size overview;    // of the whole picture
  int64_t columns;  // of slices; 0: the overview is all
  int64_t rows;
  Size cell;  // of one slice; the overview's where there are none

  int64_t images() const { return 1 + columns * rows; }
  // What the picture is resized to before it is cut into cells, row by row.
  Size refined() const { return {columns * cell.width, rows * cell.height}; }
};

// Chooses the grid and the sizes for a picture; `runtime/inputs/slices.py` has the same rules.
// Throws EngineError (invalid_picture): the picture is too long and narrow.
Cut PlanCut(Size picture, const SliceRules& rules);

// Returns the most patches that an image of a cut has.
int64_t MostPatches(const SliceRules& rules);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_SLICES_H_
