#include "runtime/engine/generator.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace minicpmv {
namespace {

using Clock = std::chrono::steady_clock;

double MsBetween(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double, std::milli>(end - start).count();
}

}  // namespace

Generator::Generator(const Tokenizer& tokenizer, const Blocks& blocks, int64_t window)
    : tokenizer_(tokenizer),
      blocks_(blocks),
      decoder_(blocks),
      cache_(blocks.config().decoder, window) {}

Answer Generator::Generate(const ChatRequest& request, const TextStream::OnText& on_text,
                           const WorkHooks& hooks, const OnToken& on_token) {
  const Plan plan = MakePlan(request);
  try {
    return Run(request, plan, on_text, hooks, on_token);
  } catch (...) {
    Reset();  // the cache may be half-written
    blocks_.ReleaseMemory();
    throw;
  }
}

void Generator::Reset() {
  cache_.Reset(kAttentionSinks);
  cached_.clear();
}

Generator::Plan Generator::MakePlan(const ChatRequest& request) const {
  CheckConversation(request.messages, request.as_original);
  request.sampling.Check();
  const EncodedPicture* picture = request.picture;
  const int64_t image_tokens = picture == nullptr ? 0 : blocks_.config().vision->query_num;
  const Grid grid = picture == nullptr ? Grid{} : picture->grid;
  Plan plan{BuildPrompt(tokenizer_, request.messages, image_tokens, grid), {}, 0};
  if (request.as_original) plan.prompt.CutAsOriginal();
  plan.keys = RequestKeys(plan.prompt.ids, plan.prompt.image_starts, image_tokens,
                          picture == nullptr ? 0 : picture->key);
  plan.pinned = PinnedTokens(plan.prompt.picture_end);
  CheckFit(cache_.window(), plan.pinned, TurnTokens(tokenizer_, request.messages.back().content),
           static_cast<int64_t>(plan.keys.size()), !grid.empty());
  return plan;
}

Answer Generator::Run(const ChatRequest& request, const Plan& plan,
                      const TextStream::OnText& on_text, const WorkHooks& hooks,
                      const OnToken& on_token) {
  const auto started = Clock::now();
  TextStream stream(tokenizer_, request.stops, on_text);
  Answer answer;
  answer.prompt_tokens = static_cast<int64_t>(plan.keys.size());
  answer.reused_tokens = cache_.Rewind(cached_, plan.keys, plan.pinned);
  cached_.resize(static_cast<size_t>(answer.reused_tokens));
  std::optional<Tensor> hidden = Prefill(plan, request.picture, answer.reused_tokens, hooks);
  const float* logits = hidden ? decoder_.LastLogits(*hidden) : nullptr;
  hidden.reset();
  blocks_.ReleaseMemory();
  const auto prefilled = Clock::now();
  answer.prefill_ms = MsBetween(started, prefilled);
  if (logits != nullptr) Decode(request, logits, hooks, on_token, &stream, &answer);
  answer.text = stream.Finish(answer.ids);
  answer.decode_ms = MsBetween(prefilled, Clock::now());
  return answer;
}

std::optional<Tensor> Generator::Prefill(const Plan& plan, const EncodedPicture* picture,
                                         int64_t reused, const WorkHooks& hooks) {
  const auto total = static_cast<int64_t>(plan.keys.size());
  std::optional<Tensor> hidden;
  for (int64_t start = reused; start < total; start += kPrefillChunk) {
    const int64_t count = std::min(kPrefillChunk, total - start);
    Tensor x = decoder_.Embed(plan.prompt.ids.data() + start, count);
    if (picture != nullptr) PutPicture(*picture, plan.prompt.image_starts, start, x);
    hidden = decoder_.Forward(std::move(x), &cache_, hooks.cancelled);
    if (!hidden) return std::nullopt;
    cached_.insert(cached_.end(), plan.keys.begin() + start, plan.keys.begin() + start + count);
    hooks.progress(start + count - reused, total - reused);
  }
  return hidden;
}

void Generator::Decode(const ChatRequest& request, const float* logits, const WorkHooks& hooks,
                       const OnToken& on_token, TextStream* stream, Answer* answer) {
  const DecoderConfig& c = blocks_.config().decoder;
  Sampler sampler(request.sampling, c.vocab_size);
  while (!hooks.cancelled()) {
    const int32_t token = sampler.Choose(logits, answer->ids);
    if (token == c.eos_token_id) {
      answer->stop = StopReason::kEos;
      return;
    }
    answer->ids.push_back(token);
    if (request.top_logprobs && on_token) {
      on_token(LogprobsOf(logits, c.vocab_size, token, *request.top_logprobs));
    }
    stream->Add(token);
    if (stream->stopped()) {
      answer->stop = StopReason::kStopString;
      return;
    }
    if (static_cast<int64_t>(answer->ids.size()) == request.max_new_tokens) {
      answer->stop = StopReason::kLength;
      return;
    }
    const auto hidden = decoder_.Forward(decoder_.Embed(&token, 1), &cache_, hooks.cancelled);
    if (!hidden) return;
    cached_.push_back({0, token});
    ++answer->decode_steps;
    logits = decoder_.LastLogits(*hidden);
  }
}

}  // namespace minicpmv
