// JSON fields of pictures and their slices, shared by requests and taps.
#ifndef MINICPMV_ENGINE_PICTURE_FIELDS_H_
#define MINICPMV_ENGINE_PICTURE_FIELDS_H_

#include <cstdint>
#include <optional>

#include "runtime/engine/fields.h"
#include "runtime/engine/line_writer.h"
#include "runtime/engine/model_config.h"

namespace minicpmv {

// Takes the field `max_slices`; nullopt: the model's own limit. Throws as `Fields` does, also if
// the model has no slices, or not so many.
std::optional<int64_t> TakeMaxSlices(Fields* request, const VisionConfig& c);

// Takes the field `grid`; empty if it is missing. Throws as `Fields` does, also if no picture of
// the model has such a grid.
Grid TakeGrid(Fields* request, const VisionConfig& c);

// Adds the field `grid`, unless the grid is empty.
void SetGrid(Grid grid, Line* line);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_PICTURE_FIELDS_H_
