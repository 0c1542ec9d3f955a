// The language model: embeddings in, logits out, with a KV cache.
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
  static constexpr int64_t kMostLogits = 4;

  explicit Decoder(const Blocks& blocks);

  // Embeds up to kPrefillChunk tokens: (L, D).
  // Throws EngineError (invalid_request): an id outside the vocabulary.
  Tensor Embed(const int32_t* ids, int64_t count);

  // Runs all layers on the embeddings (L, D) of up to kPrefillChunk tokens and appends them to a
  // cache.
  // cancelled: polled before every layer; true aborts the pass and leaves the cache unchanged.
  // Returns the hidden states (L, D); nullopt if cancelled.
  std::optional<Tensor> Forward(Tensor x, KVCache* cache,
                                const std::function<bool()>& cancelled) const;

  // Returns the logits (rows, V) of the last rows of hidden states (L, D); valid until the next
  // call.
  // rows: 1 to kMostLogits.
  const float* LastLogits(const Tensor& hidden, int64_t rows = 1);

 private:
  const Blocks& blocks_;
  AlignedBuffer ids_;   // (kPrefillChunk,) int32
  AlignedBuffer last_;  // (kMostLogits, D) float32
  Tensor logits_;       // (rows, V)
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_DECODER_H_
