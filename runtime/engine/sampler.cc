#include "runtime/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <functional>
#include <limits>
#include <string>

#include "runtime/engine/error.h"
#include "runtime/engine/tokenizer.h"

namespace minicpmv {
namespace {

void Expect(bool right, const char* name, double value, const char* expected) {
  if (right) return;
  char shown[32];
  std::snprintf(shown, sizeof(shown), "%g", value);
  throw EngineError(error_code::kInvalidRequest,
                    std::string(name) + " is " + shown + "; expected " + expected);
}

// Converts a positive factor to float32 without underflow to 0.
float Factor(double value) {
  return std::max(static_cast<float>(value), std::numeric_limits<float>::min());
}

// Clamps a score to finite float32, however extreme the options are.
float Finite(float score) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  return std::min(std::max(score, -kLargest), kLargest);
}

bool IsPositive(double value) { return std::isfinite(value) && value > 0; }

bool LessLikely(const Candidate& a, const Candidate& b) {
  return a.score != b.score ? a.score < b.score : a.id < b.id;
}

bool LowerId(const Candidate& a, const Candidate& b) { return a.id < b.id; }

}  // namespace

void SamplingOptions::Check() const {
  Expect(IsPositive(temperature), "temperature", temperature,
         "a number above 0 (for the likeliest answer choose greedy)");
  Expect(!top_k || *top_k > 0, "top_k", static_cast<double>(top_k.value_or(0)),
         "an integer of at least 1");
  Expect(top_p >= 0 && top_p <= 1, "top_p", top_p, "a number from 0 to 1");
  Expect(IsPositive(repetition_penalty), "repetition_penalty", repetition_penalty, "above 0");
}

Sampler::Sampler(const SamplingOptions& options, int64_t vocab_size)
    : options_(options),
      vocab_size_(vocab_size),
      random_(options.seed ? *options.seed : RandomSeed()) {
  const auto size = static_cast<size_t>(vocab_size);
  scores_.resize(size);
  if (!options.do_sample) return;
  if (options.top_k) sorted_.reserve(size);
  candidates_.reserve(size);
}

int32_t Sampler::Choose(const float* logits, const std::vector<int32_t>& generated) {
  if (!options_.do_sample) {
    Penalize(logits, generated);
    const auto best = std::max_element(scores_.begin(), scores_.end());  // the first maximum
    return static_cast<int32_t>(best - scores_.begin());
  }
  Distribution(logits, generated);
  double sum = 0;
  for (const Candidate& candidate : candidates_) sum += candidate.probability;
  const double target = random_.Uniform() * sum;
  double passed = 0;
  const Candidate* chosen = nullptr;
  for (const Candidate& candidate : candidates_) {
    if (candidate.probability == 0) continue;
    chosen = &candidate;
    passed += candidate.probability;
    if (passed > target) break;
  }
  return chosen->id;
}

const std::vector<Candidate>& Sampler::Distribution(const float* logits,
                                                    const std::vector<int32_t>& generated) {
  Penalize(logits, generated);
  const float temperature = Factor(options_.temperature);
  candidates_.clear();
  for (size_t id = 0; id < scores_.size(); ++id) {
    candidates_.push_back({static_cast<int32_t>(id), Finite(scores_[id] / temperature), 0});
  }
  if (options_.top_k && *options_.top_k < vocab_size_) KeepTopK();
  Normalize();
  if (options_.top_p < 1) {
    KeepTopP();
    Normalize();
  }
  return candidates_;
}

// Copies the logits after checking them, and applies the repetition penalty.
void Sampler::Penalize(const float* logits, const std::vector<int32_t>& generated) {
  for (size_t id = 0; id < scores_.size(); ++id) {
    if (!std::isfinite(logits[id])) {
      throw EngineError(error_code::kInvalidLogits,
                        "the model's logits are not finite; expected numbers");
    }
    scores_[id] = logits[id];
  }
  const float penalty = Factor(options_.repetition_penalty);
  if (penalty == 1) return;
  const auto penalize = [&](int32_t id) {
    if (id < 0 || id >= vocab_size_) {
      throw EngineError(error_code::kInternal, "a generated id is outside the vocabulary");
    }
    const float old = logits[id];  // not scores_: a repeated id is penalized once
    scores_[static_cast<size_t>(id)] = Finite(old < 0 ? old * penalty : old / penalty);
  };
  penalize(kBosId);  // the original's output starts with it, although it is not shown
  for (const int32_t id : generated) penalize(id);
}

// Keeps the k likeliest tokens, and those that tie with the k-th.
void Sampler::KeepTopK() {
  sorted_.clear();
  for (const Candidate& candidate : candidates_) sorted_.push_back(candidate.score);
  const auto last = sorted_.begin() + (*options_.top_k - 1);
  std::nth_element(sorted_.begin(), last, sorted_.end(), std::greater<float>());
  const float limit = *last;
  const auto goes = [limit](const Candidate& candidate) { return candidate.score < limit; };
  candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(), goes),
                    candidates_.end());
}

// Drops the least likely tokens while their cumulative probability is at most 1 - top_p; the
// likeliest always stays. Finds the first that stays by bisection, so that the vocabulary is not
// sorted for every token.
void Sampler::KeepTopP() {
  const auto limit = static_cast<float>(1 - options_.top_p);
  auto first = candidates_.begin(), last = candidates_.end();  // the first to stay is in between
  double dropped = 0;                                          // cumulative, before `first`
  while (last - first > 1) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, LessLikely);
    double sum = dropped;
    for (auto candidate = first; candidate != middle; ++candidate) sum += candidate->probability;
    if (static_cast<float>(sum) > limit) {
      last = middle;
    } else {
      dropped = sum;
      first = middle;
    }
  }
  candidates_.erase(candidates_.begin(), first);
  std::sort(candidates_.begin(), candidates_.end(), LowerId);
}

// Computes the survivors' probabilities from their scores (softmax).
void Sampler::Normalize() {
  float largest = candidates_.front().score;
  for (const Candidate& candidate : candidates_) largest = std::max(largest, candidate.score);
  double sum = 0;
  for (Candidate& candidate : candidates_) {
    const double weight = std::exp(static_cast<double>(candidate.score) - largest);
    candidate.probability = static_cast<float>(weight);
    sum += weight;
  }
  for (Candidate& candidate : candidates_) {
    candidate.probability = static_cast<float>(candidate.probability / sum);
  }
}

}  // namespace minicpmv
