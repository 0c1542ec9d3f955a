// Text generation: answers conversations and reuses what the KV cache holds of them.
#ifndef MINICPMV_ENGINE_GENERATOR_H_
#define MINICPMV_ENGINE_GENERATOR_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine/blocks.h"
#include "runtime/engine/decoder.h"
#include "runtime/engine/encoded_picture.h"
#include "runtime/engine/kv_cache.h"
#include "runtime/engine/logprobs.h"
#include "runtime/engine/picture_encoder.h"
#include "runtime/engine/prompt.h"
#include "runtime/engine/prompt_lookup.h"
#include "runtime/engine/sampler.h"
#include "runtime/engine/text_stream.h"
#include "runtime/engine/tokenizer.h"

namespace minicpmv {

struct ChatRequest {
  std::vector<Message> messages;            // the whole conversation
  const EncodedPicture* picture = nullptr;  // part of the first turn
  SamplingOptions sampling;
  int64_t max_new_tokens = 1;
  std::vector<std::string> stops;       // stop strings
  bool as_original = false;             // truncate long prompts silently, accept any turn order
  std::optional<int64_t> top_logprobs;  // likeliest tokens to report; nullopt: no logprobs
  bool lookup = true;                   // draft tokens that repeat; see PromptLookup
};

enum class StopReason { kEos, kLength, kStopString, kCancelled };

struct Answer {
  std::string text;
  std::vector<int32_t> ids;  // without the EOS token
  StopReason stop = StopReason::kCancelled;
  double prefill_ms = 0, decode_ms = 0;
  int64_t prompt_tokens = 0;
  int64_t reused_tokens = 0;  // prompt tokens that were in the cache
  int64_t decode_steps = 0;   // tokens after the first, EOS included, each from logits of its own
  int64_t drafted = 0;        // tokens that decoder passes tried besides the newest
  int64_t accepted = 0;       // of them, those that became part of the answer: passes saved
};

// Every request carries the whole conversation. All of it is tokenized; the prefix that the KV
// cache already holds is kept, and the rest is prefilled. This one rule, that of
// `runtime/sessions/session.py`, covers follow-up questions, retries and edited turns.
class Generator {
 public:
  using OnToken = std::function<void(const StepLogprobs&)>;

  // tokenizer, blocks: must outlive this object. window: context window, tokens.
  // Throws EngineError: see `KVCache`.
  Generator(const Tokenizer& tokenizer, const Blocks& blocks, int64_t window);

  // Answers the last turn of a conversation.
  // hooks: progress counts prefilled tokens; cancelled is polled before every layer.
  // on_token: called for every token, before its text, if the request asks for logprobs.
  // Throws EngineError: invalid_request, invalid_text, prompt_too_long, invalid_logits.
  Answer Generate(const ChatRequest& request, const TextStream::OnText& on_text,
                  const WorkHooks& hooks, const OnToken& on_token = nullptr);

  // Forgets the conversation.
  void Reset();

 private:
  // A conversation, tokenized and checked against the window.
  struct Plan {
    Prompt prompt;
    std::vector<CacheKey> keys;
    int64_t pinned;  // leading tokens that are never evicted
  };

  Plan MakePlan(const ChatRequest& request) const;
  Answer Run(const ChatRequest& request, const Plan& plan, const TextStream::OnText& on_text,
             const WorkHooks& hooks, const OnToken& on_token);
  std::optional<Tensor> Prefill(const Plan& plan, const EncodedPicture* picture, int64_t reused,
                                const WorkHooks& hooks);
  void Decode(const ChatRequest& request, const Plan& plan, const float* logits,
              const WorkHooks& hooks, const OnToken& on_token, TextStream* stream, Answer* answer);

  // Chooses the answer's next token by logits (V,). Returns false if the answer ends.
  bool TakeToken(const ChatRequest& request, Sampler* sampler, const float* logits,
                 const OnToken& on_token, TextStream* stream, Answer* answer) const;

  // Takes back the newest tokens of the cache.
  void Drop(int64_t tokens);

  const Tokenizer& tokenizer_;
  const Blocks& blocks_;
  Decoder decoder_;
  KVCache cache_;
  std::vector<CacheKey> cached_;  // what the cache's tokens were computed from
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_GENERATOR_H_
