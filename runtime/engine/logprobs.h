// How likely the model took tokens to be: what a client may ask for beside an answer.
#ifndef MINICPMV_ENGINE_LOGPROBS_H_
#define MINICPMV_ENGINE_LOGPROBS_H_

#include <cstdint>
#include <vector>

namespace minicpmv {

inline constexpr int64_t kMaxTopLogprobs = 20;  // as many as OpenAI's interface has

struct TokenLogprob {
  int32_t id;
  float logprob;  // natural logarithm of the probability
};

// A token of an answer, and the likeliest in its place.
struct StepLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  // the likeliest first, of equals the lowest id
};

// Takes them from the model's own distribution: before repetition penalty, temperature, top-k and
// top-p, as `runtime.inputs.logprobs` does.
// logits: (V,), finite. count: of the likeliest.
StepLogprobs LogprobsOf(const float* logits, int64_t vocab_size, int32_t chosen, int64_t count);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_LOGPROBS_H_
