// The KV cache of one conversation: keys and values of all layers.
#ifndef MINICPMV_ENGINE_KV_CACHE_H_
#define MINICPMV_ENGINE_KV_CACHE_H_

#include <cstdint>
#include <vector>

#include "runtime/engine/blocks.h"
#include "runtime/engine/model_config.h"
#include "runtime/engine/tensors.h"
#include "runtime/engine/window.h"

namespace minicpmv {

inline constexpr int64_t kPrefillChunk = 128;  // most tokens in one pass through the layers

// Memory is reserved for a whole window; the system commits pages as they are written. `Window`
// decides which tokens are kept, and in which slots.
class KVCache {
 public:
  // Throws EngineError: prompt_too_long (no room beside the attention sinks), out_of_memory.
  KVCache(const DecoderConfig& config, int64_t window);

  int64_t window() const { return window_.window(); }
  int64_t length() const { return window_.length(); }

  // Empties the cache for a conversation with this many pinned tokens.
  // Throws EngineError (prompt_too_long): no room beside them.
  void Reset(int64_t pinned);

  // See `Window::Rewind`.
  int64_t Rewind(const std::vector<CacheKey>& cached, const std::vector<CacheKey>& request,
                 int64_t pinned);

  // Returns a layer's arguments for the next `rows` tokens, at most kPrefillChunk. The tokens do
  // not count as cached until Append, so a pass through the layers may be aborted.
  LayerCache Layer(int64_t layer, int64_t rows);

  // Commits tokens that have passed through all layers.
  void Append(int64_t rows) { window_.Append(rows); }

  // See `Window::Drop`.
  void Drop(int64_t rows) { window_.Drop(rows); }

 private:
  // One of a layer's cache tensors; see `convert/blocks/kv_cache.py`.
  struct Part {
    std::vector<int64_t> shape;
    DLDataType dtype;
    size_t offset;  // bytes, from the start of the layer
  };

  // tiles: number of slot tiles.
  static std::vector<Part> PartsOf(const DecoderConfig& config, int64_t tiles);

  // Size of a part, padded to the alignment of the next one.
  static size_t Bytes(const Part& part);

  void Rotate(int64_t start, int64_t rows);

  const DecoderConfig config_;
  Window window_;
  int64_t slots_;  // in each layer
  std::vector<Part> parts_;
  size_t layer_bytes_;
  AlignedBuffer memory_;                           // (layers, layer_bytes_)
  std::vector<double> frequencies_;                // (head_dim / 2,)
  AlignedBuffer angles_;                           // (kPrefillChunk, 4, head_dim / 2) float32
  int64_t rotated_start_ = -1, rotated_rows_ = 0;  // the tokens whose angles angles_ holds
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_KV_CACHE_H_
