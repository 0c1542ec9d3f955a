// Log-probabilities of an answer's tokens, which a client may request.
#ifndef MINICPMV_ENGINE_LOGPROBS_H_
#define MINICPMV_ENGINE_LOGPROBS_H_

#include <cstdint>
#include <vector>

namespace minicpmv {

inline constexpr int64_t kMaxTopLogprobs = 20;  // the limit of OpenAI's API

struct TokenLogprob {
  int32_t id;
  float logprob;  // natural logarithm of the probability
};

// A token of an answer, and the likeliest alternatives at its position.
struct StepLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  // likeliest first; ties by ascending id
};

// Computes them from the model's own distribution: before repetition penalty, temperature, top-k
// and top-p, as `runtime.inputs.logprobs` does.
// logits: (V,), finite. count: length of `top`.
StepLogprobs LogprobsOf(const float* logits, int64_t vocab_size, int32_t chosen, int64_t count);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_LOGPROBS_H_
