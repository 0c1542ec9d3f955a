// Chooses the next token: logits processing in the order of `transformers`.
#ifndef MINICPMV_ENGINE_SAMPLER_H_
#define MINICPMV_ENGINE_SAMPLER_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/engine/random.h"

namespace minicpmv {

// Sampling options, named as in `transformers`.
struct SamplingOptions {
  bool do_sample = false;  // otherwise greedy
  double temperature = 1.0;
  std::optional<int64_t> top_k;     // nullopt: no limit
  double top_p = 1.0;               // 1.0: no limit
  double repetition_penalty = 1.0;  // for generated tokens; 1.0: none
  std::optional<uint64_t> seed;     // nullopt: a random one

  // Throws EngineError (invalid_request): a value out of its range.
  void Check() const;
};

// A candidate for the next token.
struct Candidate {
  int32_t id;
  float score;
  float probability;
};

// Chooses the tokens of one answer.
//
// Applies repetition penalty, temperature, top-k and top-p in this order, in float32 like
// `runtime.inputs.sampling`: the same tokens survive with the same probabilities. A random u in
// [0, 1) then chooses the first survivor, by ascending id, at which the cumulative probability
// exceeds u times the total. The same seed and logits give the same tokens on every machine.
class Sampler {
 public:
  // options: already checked.
  Sampler(const SamplingOptions& options, int64_t vocab_size);

  // Returns the next token's id; greedy decoding breaks ties by the lowest id.
  // logits: (V,). generated: the answer's ids so far.
  // Throws EngineError (invalid_logits): the logits are not finite.
  int32_t Choose(const float* logits, const std::vector<int32_t>& generated);

  // Returns the tokens that sampling chooses from, by ascending id. Valid until the next call.
  const std::vector<Candidate>& Distribution(const float* logits,
                                             const std::vector<int32_t>& generated);

 private:
  void Penalize(const float* logits, const std::vector<int32_t>& generated);
  void KeepTopK();
  void KeepTopP();
  void Normalize();

  const SamplingOptions options_;
  const int64_t vocab_size_;
  Random random_;
  std::vector<float> scores_;  // (V,) after the penalty
  std::vector<float> sorted_;  // (V,) partially sorted, to find the k-th
  std::vector<Candidate> candidates_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_SAMPLER_H_
