// Position embeddings for an image's grid of patches, as `convert/checkpoint/positions.py` makes
// them.
#ifndef MINICPMV_ENGINE_POSITIONS_H_
#define MINICPMV_ENGINE_POSITIONS_H_

#include <cstdint>

#include "runtime/engine/picture_file.h"

namespace minicpmv {

// Resamples the vision encoder's positions: bicubic, antialiased, in float64, so that every processor
// computes the same; PyTorch's float32 differs by up to 1e-5.
// stored: (side * side, width) of a square grid. patches: columns and rows of the image.
// positions: receives (rows * columns, width), row by row.
void ResamplePositions(const float* stored, int64_t side, int64_t width, Size patches,
                       float* positions);

// Encodes the numbers from 0 to `count` - 1 as the resampler's keys do columns and rows.
// encoded: receives (count, width), each row first sines, then cosines.
void EncodePlaces(int64_t count, int64_t width, float* encoded);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_POSITIONS_H_
