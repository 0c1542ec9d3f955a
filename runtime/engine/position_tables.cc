#include "runtime/engine/position_tables.h"

#include "runtime/engine/positions.h"

namespace minicpmv {
namespace {

constexpr int kShapesKept = 2;  // an overview's and the slices'

size_t FloatBytes(int64_t count) { return static_cast<size_t>(count) * sizeof(float); }

}  // namespace

PositionTables::PositionTables(const Blocks& blocks) : blocks_(blocks) {
  const VisionConfig& c = *blocks.config().vision;
  if (!c.slices) return;
  for (int i = 0; i < kShapesKept; ++i) {
    tables_.emplace_back(FloatBytes(c.most_patches() * c.embed_dim));
  }
}

Tensor PositionTables::Positions(Size patches) {
  const VisionConfig& c = *blocks_.config().vision;
  const Tensor stored = blocks_.Weight("vision.pos_embed");
  if (!c.slices) return stored;
  Tables& tables = Find(patches);
  if (!tables.positions) {
    ResamplePositions(static_cast<const float*>(stored.data_ptr()), c.slices->trained_grid,
                      c.embed_dim, patches, tables.memory.floats());
    tables.positions =
        Borrow(tables.memory.data(), {patches.area(), c.embed_dim}, kFloat32);
  }
  return *tables.positions;
}

Tensor PositionTables::KeyPositions(Size patches) {
  const ModelConfig& c = blocks_.config();
  if (!c.vision->slices) return blocks_.Weight("resampler.key_positions");
  Tables& tables = Find(patches);
  if (!tables.keys) {
    const int64_t width = c.decoder.hidden_size / 2;
    const AlignedBuffer columns(FloatBytes(patches.width * width));
    const AlignedBuffer rows(FloatBytes(patches.height * width));
    EncodePlaces(patches.width, width, columns.floats());
    EncodePlaces(patches.height, width, rows.floats());
    tables.keys = blocks_.KeyPositions(Borrow(columns.data(), {patches.width, width}, kFloat32),
                                       Borrow(rows.data(), {patches.height, width}, kFloat32));
  }
  return *tables.keys;
}

// Returns the tables of a shape, which replace the least recently used ones.
PositionTables::Tables& PositionTables::Find(Size patches) {
  auto found = tables_.begin();
  while (!(found->patches == patches)) {
    if (++found != tables_.end()) continue;
    --found;
    found->patches = patches;
    found->positions.reset();
    found->keys.reset();
    break;
  }
  tables_.splice(tables_.begin(), tables_, found);
  return tables_.front();
}

}  // namespace minicpmv
