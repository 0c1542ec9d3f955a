#include "runtime/engine/generator.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace minicpmv {
namespace {

using Clock = std::chrono::steady_clock;

static_assert(PromptLookup::kMostDrafted < Decoder::kMostLogits, "one for each token of a pass");

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
  if (logits != nullptr) Decode(request, plan, logits, hooks, on_token, &stream, &answer);
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

void Generator::Decode(const ChatRequest& request, const Plan& plan, const float* logits,
                       const WorkHooks& hooks, const OnToken& on_token, TextStream* stream,
                       Answer* answer) {
  const int64_t vocab_size = blocks_.config().decoder.vocab_size;
  Sampler sampler(request.sampling, vocab_size);
  PromptLookup lookup(plan.prompt.ids);
  std::vector<int32_t> drafted;  // those that the last pass tried
  size_t accepted = 0;           // of them
  double ms = 0;                 // of the last pass
  const auto drop_wrong = [&] {
    Drop(static_cast<int64_t>(drafted.size() - accepted));
    drafted.clear();
  };
  while (!hooks.cancelled() && TakeToken(request, &sampler, logits, on_token, stream, answer)) {
    const int32_t token = answer->ids.back();
    lookup.Add(token);
    if (accepted < drafted.size() && drafted[accepted] == token) {
      ++accepted;
      ++answer->accepted;
      ++answer->decode_steps;
      logits += vocab_size;
      continue;
    }
    if (answer->decode_steps > 0) lookup.Learn(drafted.size(), accepted, ms);
    drop_wrong();
    const auto left = request.max_new_tokens - static_cast<int64_t>(answer->ids.size());
    if (request.lookup) drafted = lookup.Draft(left - 1);
    accepted = 0;
    std::vector<int32_t> tokens{token};
    tokens.insert(tokens.end(), drafted.begin(), drafted.end());
    const auto rows = static_cast<int64_t>(tokens.size());
    const auto started = Clock::now();
    const auto hidden =
        decoder_.Forward(decoder_.Embed(tokens.data(), rows), &cache_, hooks.cancelled);
    if (!hidden) {
      drafted.clear();  // the cache is as it was
      break;
    }
    for (const int32_t id : tokens) cached_.push_back({0, id});
    logits = decoder_.LastLogits(*hidden, rows);
    ms = MsBetween(started, Clock::now());
    ++answer->decode_steps;
    answer->drafted += rows - 1;
  }
  drop_wrong();
}

bool Generator::TakeToken(const ChatRequest& request, Sampler* sampler, const float* logits,
                          const OnToken& on_token, TextStream* stream, Answer* answer) const {
  const DecoderConfig& c = blocks_.config().decoder;
  const int32_t token = sampler->Choose(logits, answer->ids);
  if (token == c.eos_token_id) {
    answer->stop = StopReason::kEos;
    return false;
  }
  answer->ids.push_back(token);
  if (request.top_logprobs && on_token) {
    on_token(LogprobsOf(logits, c.vocab_size, token, *request.top_logprobs));
  }
  stream->Add(token);
  if (stream->stopped()) {
    answer->stop = StopReason::kStopString;
  } else if (static_cast<int64_t>(answer->ids.size()) == request.max_new_tokens) {
    answer->stop = StopReason::kLength;
  } else {
    return true;
  }
  return false;
}

void Generator::Drop(int64_t tokens) {
  cache_.Drop(tokens);
  cached_.resize(cached_.size() - static_cast<size_t>(tokens));
}

}  // namespace minicpmv
