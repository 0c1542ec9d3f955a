// Which token comes next: the processing of logits, as `transformers` orders it.
#ifndef MINICPMV_ENGINE_SAMPLER_H_
#define MINICPMV_ENGINE_SAMPLER_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/engine/random.h"

namespace minicpmv {

// How tokens are chosen; the fields are named as in `transformers`.
struct SamplingOptions {
  bool do_sample = false;  // otherwise greedy
  double temperature = 1.0;
  std::optional<int64_t> top_k;     // none: no limit
  double top_p = 1.0;               // 1.0: no limit
  double repetition_penalty = 1.0;  // of generated tokens; 1.0: none
  std::optional<uint64_t> seed;     // none: another answer each time

  // Throws EngineError (invalid_request): a value out of its range.
  void Check() const;
};

// A token that may come next.
struct Candidate {
  int32_t id;
  float score;
  float probability;
};

// Chooses one token after the other for one answer.
//
// Repetition penalty, temperature, top-k, top-p in this order, in float32 as
// `runtime.inputs.sampling`: the same tokens survive with the same probabilities. A number u from [0, 1)
// then chooses the first survivor, by ascending id, at which the sum of probabilities exceeds u
// times their sum. The same seed and logits give the same tokens on every machine.
class Sampler {
 public:
  // options: checked before.
  Sampler(const SamplingOptions& options, int64_t vocab_size);

  // Returns the next token's id; of several that are likeliest, greedy takes the lowest id.
  // logits: (V,). generated: the answer's ids so far.
  // Throws EngineError (invalid_logits): the logits are not finite.
  int32_t Choose(const float* logits, const std::vector<int32_t>& generated);

  // Returns the tokens from which sampling chooses, by ascending id. Valid until the next call.
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
  std::vector<float> sorted_;  // (V,) in parts, to find the k-th
  std::vector<Candidate> candidates_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_SAMPLER_H_
