#include "runtime/engine/kv_cache.h"

#include <cmath>
#include <string>

#include "runtime/engine/error.h"

namespace minicpmv {
namespace {

constexpr int64_t kTile = 16;  // slots, the lanes of attention's kernels
constexpr int64_t kMaxWindow = 1 << 20;
constexpr size_t kFloat16Bytes = 2;

// Returns enough slots for any number of pinned tokens: these and the ring are rounded up apart.
int64_t SlotsForWindow(int64_t window) {
  if (window > kMaxWindow) {
    throw EngineError(error_code::kInvalidRequest, "window " + std::to_string(window) +
                                                       "; expected at most " +
                                                       std::to_string(kMaxWindow) + " tokens");
  }
  return (window + kPrefillChunk + kTile - 1) / kTile * kTile + kTile;
}

size_t CacheBytes(const DecoderConfig& c, int64_t slots) {
  return static_cast<size_t>(c.num_hidden_layers * c.kv_dim()) * static_cast<size_t>(slots) *
         kFloat16Bytes;
}

}  // namespace

KVCache::KVCache(const DecoderConfig& config, int64_t window)
    : config_(config),
      window_(window, kAttentionSinks, SlotsForWindow(window), kTile),
      slots_(SlotsForWindow(window)),
      keys_(CacheBytes(config, slots_)),
      values_(CacheBytes(config, slots_)),
      angles_(static_cast<size_t>(kPrefillChunk * 2 * config.head_dim()) * sizeof(float)) {
  const int64_t dim = config.head_dim();
  for (int64_t i = 0; i < dim; i += 2) {
    const double exponent = static_cast<double>(i) / static_cast<double>(dim);
    frequencies_.push_back(std::pow(config.rope_theta, -exponent));
  }
}

void KVCache::Reset(int64_t pinned) {
  // What the slots held stays there, unseen.
  window_ = Window(window_.window(), pinned, slots_, kTile);
}

int64_t KVCache::Rewind(const std::vector<CacheKey>& cached, const std::vector<CacheKey>& request,
                        int64_t pinned) {
  return window_.Rewind(cached, request, pinned);
}

CachePlace KVCache::Place(int64_t layer, int64_t rows) {
  const int64_t heads = config_.num_key_value_heads, dim = config_.head_dim();
  const int64_t start = window_.length(), tiles = slots_ / kTile;
  Rotate(start, rows);
  const size_t offset =
      static_cast<size_t>(layer) * (keys_.size() / static_cast<size_t>(config_.num_hidden_layers));
  return {Borrow(angles_.data(), {rows, 4, dim / 2}, kFloat32),
          Borrow(keys_.data() + offset, {heads, tiles, dim, kTile}, kFloat16),
          Borrow(values_.data() + offset, {heads, tiles, kTile, dim}, kFloat16),
          start,
          window_.window(),
          window_.pinned()};
}

// Writes cos, sin for recent and cos, sin for pinned keys.
void KVCache::Rotate(int64_t start, int64_t rows) {
  if (start == rotated_start_ && rows == rotated_rows_) return;  // every layer asks for the same
  float* out = angles_.floats();
  for (int64_t index = start; index < start + rows; ++index) {
    for (const int64_t position : {index, window_.PinnedPosition(index)}) {
      // In double: a long conversation's positions are large, and sin amplifies that.
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
