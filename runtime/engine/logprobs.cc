#include "runtime/engine/logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace minicpmv {

StepLogprobs LogprobsOf(const float* logits, int64_t vocab_size, int32_t chosen, int64_t count) {
  const double largest = *std::max_element(logits, logits + vocab_size);
  double sum = 0;
  for (int64_t id = 0; id < vocab_size; ++id) sum += std::exp(logits[id] - largest);
  const double log_sum = std::log(sum);
  const auto logprob = [&](int32_t id) {
    constexpr double kLowest = std::numeric_limits<float>::lowest();  // JSON has no -infinity
    return TokenLogprob{id,
                        static_cast<float>(std::max((logits[id] - largest) - log_sum, kLowest))};
  };
  std::vector<int32_t> ids(static_cast<size_t>(std::min(count, vocab_size)));
  if (!ids.empty()) {
    std::vector<int32_t> all(static_cast<size_t>(vocab_size));
    std::iota(all.begin(), all.end(), 0);
    std::partial_sort_copy(all.begin(), all.end(), ids.begin(), ids.end(),
                           [logits](int32_t a, int32_t b) {
                             return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
                           });
  }
  StepLogprobs step{logprob(chosen), {}};
  step.top.reserve(ids.size());
  for (const int32_t id : ids) step.top.push_back(logprob(id));
  return step;
}

}  // namespace minicpmv
