// The language model: embeddings in, logits out, over a KV cache.
#ifndef MINICPMV_ENGINE_DECODER_H_
#define MINICPMV_ENGINE_DECODER_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "runtime/engine/blocks.h"
#include "runtime/engine/kv_cache.h"

namespace minicpmv {

class Decoder {
 public:
  explicit Decoder(const Blocks& blocks);

  // Embeds up to kPrefillChunk tokens: (L, D).
  // Throws EngineError (invalid_request): an id outside the vocabulary.
  Tensor Embed(const int32_t* ids, int64_t count);

  // Runs all layers on embeddings (L, D), up to kPrefillChunk, and adds them to a cache.
  // cancelled: asked before every layer; true gives up and leaves the cache as it was.
  // Returns the hidden states (L, D); nothing if cancelled.
  std::optional<Tensor> Forward(Tensor x, KVCache* cache,
                                const std::function<bool()>& cancelled) const;

  // Returns the logits (V,) of the last of some hidden states (L, D); valid until the next call.
  const float* LastLogits(const Tensor& hidden);

 private:
  const Blocks& blocks_;
  AlignedBuffer ids_;   // (kPrefillChunk,) int32
  AlignedBuffer last_;  // (1, D) float32
  Tensor logits_;       // (1, V)
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_DECODER_H_
