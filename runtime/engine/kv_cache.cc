#include "runtime/engine/kv_cache.h"

#include <cmath>
#include <string>
#include <utility>

#include "runtime/engine/error.h"

namespace minicpmv {
namespace {

constexpr int64_t kTile = 16;  // slots; the vector lanes of the attention kernels
constexpr int64_t kMaxWindow = 1 << 20;

// Returns enough slots for any number of pinned tokens: the pinned slots and the ring are rounded
// up to whole tiles separately.
int64_t SlotsForWindow(int64_t window) {
  if (window > kMaxWindow) {
    throw EngineError(error_code::kInvalidRequest, "window " + std::to_string(window) +
                                                       "; expected at most " +
                                                       std::to_string(kMaxWindow) + " tokens");
  }
  return (window + kPrefillChunk + kTile - 1) / kTile * kTile + kTile;
}

}  // namespace

KVCache::KVCache(const DecoderConfig& config, int64_t window)
    : config_(config),
      window_(window, kAttentionSinks, SlotsForWindow(window), kTile),
      slots_(SlotsForWindow(window)),
      parts_(PartsOf(config, slots_ / kTile)),
      layer_bytes_(parts_.back().offset + Bytes(parts_.back())),
      memory_(static_cast<size_t>(config.num_hidden_layers) * layer_bytes_),
      angles_(static_cast<size_t>(kPrefillChunk * 2 * config.head_dim()) * sizeof(float)) {
  const int64_t dim = config.head_dim();
  for (int64_t i = 0; i < dim; i += 2) {
    const double exponent = static_cast<double>(i) / static_cast<double>(dim);
    frequencies_.push_back(std::pow(config.rope_theta, -exponent));
  }
}

std::vector<KVCache::Part> KVCache::PartsOf(const DecoderConfig& c, int64_t tiles) {
  const int64_t heads = c.num_key_value_heads, dim = c.head_dim();
  const bool coded = c.kv_cache == KVFormat::kInt8;
  const DLDataType dtype = coded ? kInt8 : kFloat16;
  std::vector<Part> parts{{{heads, tiles, dim, kTile}, dtype, 0},
                          {{heads, tiles, kTile, dim}, dtype, 0}};
  if (coded) {
    for (int i = 0; i < 2; ++i) parts.push_back({{heads, tiles, kTile}, kFloat32, 0});  // scales
  }
  for (size_t i = 1; i < parts.size(); ++i) {
    parts[i].offset = parts[i - 1].offset + Bytes(parts[i - 1]);
  }
  return parts;
}

size_t KVCache::Bytes(const Part& part) {
  auto bytes = static_cast<size_t>(part.dtype.bits) / 8;
  for (const int64_t extent : part.shape) bytes *= static_cast<size_t>(extent);
  return (bytes + kWeightAlignment - 1) / kWeightAlignment * kWeightAlignment;
}

void KVCache::Reset(int64_t pinned) {
  // Old contents stay in the slots, but no query sees them.
  window_ = Window(window_.window(), pinned, slots_, kTile);
}

int64_t KVCache::Rewind(const std::vector<CacheKey>& cached, const std::vector<CacheKey>& request,
                        int64_t pinned) {
  return window_.Rewind(cached, request, pinned);
}

LayerCache KVCache::Layer(int64_t layer, int64_t rows) {
  const int64_t start = window_.length();
  Rotate(start, rows);
  uint8_t* const begin = memory_.data() + static_cast<size_t>(layer) * layer_bytes_;
  std::vector<Tensor> cache;
  for (const Part& part : parts_) {
    cache.push_back(Borrow(begin + part.offset, part.shape, part.dtype));
  }
  return {Borrow(angles_.data(), {rows, 4, config_.head_dim() / 2}, kFloat32), std::move(cache),
          start, window_.window(), window_.pinned()};
}

// Writes the RoPE angles of each row: cos, sin for recent keys, then cos, sin for pinned keys.
void KVCache::Rotate(int64_t start, int64_t rows) {
  if (start == rotated_start_ && rows == rotated_rows_) return;  // the same for every layer
  float* out = angles_.floats();
  for (int64_t index = start; index < start + rows; ++index) {
    for (const int64_t position : {index, window_.PinnedPosition(index)}) {
      // In double precision: positions of a long conversation are large, and so is the error of
      // position * frequency in float32.
      for (const double f : frequencies_) {
        *out++ = static_cast<float>(std::cos(static_cast<double>(position) * f));
      }
      for (const double f : frequencies_) {
        *out++ = static_cast<float>(std::sin(static_cast<double>(position) * f));
      }
    }
  }
  rotated_start_ = start;
  rotated_rows_ = rows;
}

}  // namespace minicpmv
