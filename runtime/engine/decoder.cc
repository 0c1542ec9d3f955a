#include "runtime/engine/decoder.h"

#include <cstring>
#include <string>
#include <utility>

#include "runtime/engine/error.h"

namespace minicpmv {

Decoder::Decoder(const Blocks& blocks)
    : blocks_(blocks),
      ids_(static_cast<size_t>(kPrefillChunk) * sizeof(int32_t)),
      last_(static_cast<size_t>(kMostLogits * blocks.config().decoder.hidden_size) *
            sizeof(float)) {}

Tensor Decoder::Embed(const int32_t* ids, int64_t count) {
  const int64_t vocab_size = blocks_.config().decoder.vocab_size;
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      throw EngineError(error_code::kInvalidRequest, "token id " + std::to_string(ids[i]) +
                                                         " is outside the vocabulary of " +
                                                         std::to_string(vocab_size));
    }
  }
  std::memcpy(ids_.data(), ids, static_cast<size_t>(count) * sizeof(int32_t));
  return blocks_.Embed(Borrow(ids_.data(), {count}, kInt32));
}

std::optional<Tensor> Decoder::Forward(Tensor x, KVCache* cache,
                                       const std::function<bool()>& cancelled) const {
  const int64_t rows = x.size(0);
  for (int64_t i = 0; i < blocks_.config().decoder.num_hidden_layers; ++i) {
    if (cancelled()) return std::nullopt;
    x = blocks_.DecoderLayer(i, x, cache->Layer(i, rows));
  }
  cache->Append(rows);
  return x;
}

const float* Decoder::LastLogits(const Tensor& hidden, int64_t rows) {
  const int64_t width = hidden.size(1);
  const float* last =
      static_cast<const float*>(hidden.data_ptr()) + (hidden.size(0) - rows) * width;
  std::memcpy(last_.data(), last, static_cast<size_t>(rows * width) * sizeof(float));
  logits_ = blocks_.Logits(Borrow(last_.data(), {rows, width}, kFloat32));
  return static_cast<const float*>(logits_.data_ptr());
}

}  // namespace minicpmv
