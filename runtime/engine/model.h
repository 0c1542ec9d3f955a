// A loaded bundle and the components that run it.
#ifndef MINICPMV_ENGINE_MODEL_H_
#define MINICPMV_ENGINE_MODEL_H_

#include <functional>
#include <optional>
#include <string>

#include "runtime/engine/blocks.h"
#include "runtime/engine/bundle.h"
#include "runtime/engine/error.h"
#include "runtime/engine/generator.h"
#include "runtime/engine/kinds.h"
#include "runtime/engine/picture_encoder.h"
#include "runtime/engine/tokenizer.h"

namespace minicpmv {

class Model {
 public:
  // choose: which blocks compute a bundle. window: context window, tokens. weights: see `Bundle`.
  // Throws EngineError: see `Bundle` and `Generator`.
  Model(const std::string& folder, const std::string& target, const std::string& program_id,
        const std::function<Kinds(const Bundle&)>& choose, int64_t window,
        const RegularFile* weights)
      : bundle_(folder, target, program_id, weights),
        kinds_(choose(bundle_)),
        blocks_(kinds_, bundle_) {
    if (bundle_.config().vision) pictures_.emplace(blocks_);
    if (!bundle_.tokenizer()) return;
    const auto& vision = config().vision;
    const bool slices = vision && vision->slices;
    tokenizer_.emplace(*bundle_.tokenizer(),
                       slices ? std::make_optional(vision->slices->tags) : std::nullopt);
    tokenizer_->RequireFit(config().decoder.vocab_size, vision.has_value());
    generator_.emplace(*tokenizer_, blocks_, window);
  }

  const Bundle& bundle() const { return bundle_; }
  const ModelConfig& config() const { return bundle_.config(); }
  const Kinds& kinds() const { return kinds_; }
  const Blocks& blocks() const { return blocks_; }
  Blocks& blocks() { return blocks_; }

  // The following throw EngineError (not_loaded) if the bundle lacks the component.
  const Tokenizer& tokenizer() const {
    if (!tokenizer_) Lacks("tokenizer.model, so it cannot read text");
    return *tokenizer_;
  }
  Generator& generator() {
    if (!generator_) Lacks("tokenizer.model, so it cannot read text");
    return *generator_;
  }
  PictureEncoder& pictures() {
    if (!pictures_) Lacks("vision encoder, so it cannot see pictures");
    return *pictures_;
  }

 private:
  [[noreturn]] static void Lacks(const std::string& what) {
    throw EngineError(error_code::kNotLoaded, "this bundle has no " + what);
  }

  Bundle bundle_;
  Kinds kinds_;
  Blocks blocks_;
  std::optional<Tokenizer> tokenizer_;
  std::optional<PictureEncoder> pictures_;
  std::optional<Generator> generator_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_MODEL_H_
