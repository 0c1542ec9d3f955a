// The position embeddings that vision encoder and resampler add, for each shape of image.
#ifndef MINICPMV_ENGINE_POSITION_TABLES_H_
#define MINICPMV_ENGINE_POSITION_TABLES_H_

#include <cstdint>
#include <list>
#include <optional>

#include "runtime/engine/blocks.h"
#include "runtime/engine/tensors.h"

namespace minicpmv {

// For a model without slices these are the bundle's tensors. For a model with slices they are
// computed for an image's shape; those of the latest two shapes are remembered, so that a picture's
// overview and slices compute theirs once.
class PositionTables {
 public:
  // blocks: of a model with a vision encoder; must outlive this object.
  explicit PositionTables(const Blocks& blocks);

  // patches: columns and rows of the image, at most MostPatches of them.
  // Both return a tensor that is valid until this object is asked for two other shapes.
  Tensor Positions(Size patches);     // (P, Dv), for VisionEmbed
  Tensor KeyPositions(Size patches);  // (P, D), for Resample

 private:
  struct Tables {
    explicit Tables(size_t size) : memory(size) {}

    Size patches{0, 0};
    AlignedBuffer memory;                   // of `positions`, for the largest shape
    std::optional<Tensor> positions, keys;  // nullopt until they are asked for
  };

  Tables& Find(Size patches);

  const Blocks& blocks_;
  std::list<Tables> tables_;  // most recently used first; none without slices
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_POSITION_TABLES_H_
