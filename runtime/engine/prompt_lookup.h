// Guesses the next tokens of an answer from what it repeats: the prompt, earlier turns, itself.
#ifndef MINICPMV_ENGINE_PROMPT_LOOKUP_H_
#define MINICPMV_ENGINE_PROMPT_LOOKUP_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace minicpmv {

// Speculative decoding without a second model ("prompt lookup decoding"). Where the newest tokens
// stood before, those that followed are drafted; one decoder pass then gives the logits behind each
// of them, and the sampler decides as it would without drafts, so that answers do not change.
//
// A pass over several tokens takes longer than one over a single token, by how much depends on the
// processor. So what drafts cost and save is measured: while they lose time, they are paused, each
// time for longer.
class PromptLookup {
 public:
  static constexpr int64_t kMostDrafted = 3;  // tokens
  static constexpr size_t kMatched = 3;       // newest tokens that must have stood before

  // prompt: its ids; what stands in for image tokens may be among them.
  explicit PromptLookup(std::vector<int32_t> prompt) : tokens_(std::move(prompt)) {}

  // Adds a token of the answer.
  void Add(int32_t token) { tokens_.push_back(token); }

  // Returns the tokens to try behind the newest one: at most `most`, often none.
  std::vector<int32_t> Draft(int64_t most);

  // Tells what a decoder pass over the newest token and `drafted` more took.
  // accepted: how many of these became part of the answer.
  void Learn(size_t drafted, size_t accepted, double ms);

 private:
  std::vector<int32_t> tokens_;
  double single_ms_ = 0;  // a pass over one token, smoothed; 0: not measured yet
  int64_t pause_ = 0;     // passes until the next draft
  int64_t next_pause_ = kFirstPause;

  static constexpr int64_t kFirstPause = 16;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_PROMPT_LOOKUP_H_
