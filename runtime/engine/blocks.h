// The model's compiled blocks, bound to a bundle's weights: one call per block.
#ifndef MINICPMV_ENGINE_BLOCKS_H_
#define MINICPMV_ENGINE_BLOCKS_H_

#include <tvm/ffi/any.h>
#include <tvm/ffi/function.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/engine/bundle.h"
#include "runtime/engine/kinds.h"
#include "runtime/engine/profile.h"
#include "runtime/engine/tensors.h"

namespace minicpmv {

// What a decoder layer needs of the KV cache; see `convert/blocks/cached_attention.py`.
struct LayerCache {
  Tensor angles;                // (L, 4, head_dim / 2) float32
  std::vector<Tensor> tensors;  // the layer's cache tensors, which the call updates
  int64_t start;                // index of the first new token
  int64_t window, pinned;
};

// Calls the blocks that are linked into this program.
// Weights are used in place, in the memory that the bundle has mapped. All tensors are float32,
// aligned to 64 bytes; their shapes are checked. Not thread-safe. The caller may write to the
// tensors that are returned.
//
// Every method throws EngineError (internal) if the block rejects its arguments.
class Blocks {
 public:
  // kinds: which of the program's blocks, and threads. bundle: must outlive this object.
  Blocks(const Kinds& kinds, const Bundle& bundle);

  const ModelConfig& config() const { return config_; }

  // Only if config().vision is set:
  // An image has P patches, at most MostPatches; see PositionTables for the positions.
  // (3, height, width), (P, Dv) -> (P, Dv)
  Tensor VisionEmbed(const Tensor& pixels, const Tensor& positions) const;
  Tensor VisionBlock(int64_t index, const Tensor& x) const;  // (P, Dv) -> (P, Dv)
  Tensor VisionNorm(const Tensor& x) const;                  // (P, Dv) -> (P, Dv)
  // (P, Dv), (P, D) -> (Q, D)
  Tensor Resample(const Tensor& features, const Tensor& key_positions) const;
  // Only with slices: encoded columns (C, D / 2) and rows (R, D / 2) of patches -> (R * C, D)
  Tensor KeyPositions(const Tensor& columns, const Tensor& rows) const;

  // Returns a tensor of the bundle that has one part.
  Tensor Weight(const std::string& name) const { return Borrow(bundle_.Parts(name).at(0)); }

  // ids: (L,) int32, each inside the vocabulary.
  Tensor Embed(const Tensor& ids) const;  // -> (L, D), scaled
  Tensor DecoderLayer(int64_t index, const Tensor& x, const LayerCache& cache) const;  // (L, D)
  Tensor Logits(const Tensor& hidden) const;  // (L, D) -> (L, V)

  // Returns the kernel times since the last call. The first call turns profiling on, for the
  // lifetime of this object.
  std::map<std::string, Profile::Time> TakeProfile();

  // Returns pooled memory to the system. The pool reuses buffers by size, and a prefill's buffers
  // do not fit the decode steps that follow it.
  static void ReleaseMemory();

 private:
  using Arguments = std::vector<tvm::ffi::Any>;

  // A function, the weights that are passed as its last arguments, and its threads.
  struct Block {
    tvm::ffi::Function function;
    Arguments weights;
    int threads;
  };

  // Returns the name of a layer's function, which is compiled once for each combination of formats
  // that the layer's matrices have; see `variant` in `convert/blocks/matrix_formats.py`.
  std::string Variant(std::string function, const std::vector<std::string>& matrices) const;
  Block Bind(const Kind& kind, const std::string& function,
             const std::vector<std::string>& weights) const;
  static Tensor Call(const Block& block, std::vector<tvm::ffi::AnyView> arguments);

  const Bundle& bundle_;
  const ModelConfig& config_;
  std::map<std::string, tvm::ffi::Any> vms_;  // by prefix; they keep the functions alive
  Block vision_embed_, vision_norm_, key_positions_, resampler_, embed_, lm_head_;
  std::vector<Block> vision_blocks_, layers_;
  std::vector<Block> steps_;  // each layer for one token
  std::shared_ptr<Profile> profile_;  // null until profiling is turned on
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_BLOCKS_H_
