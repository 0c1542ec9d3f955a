#include "runtime/engine/self_check.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

#include "runtime/engine/chat_fields.h"
#include "runtime/engine/decoder.h"
#include "runtime/engine/encoded_picture.h"
#include "runtime/engine/kv_cache.h"
#include "runtime/engine/picture_file.h"
#include "runtime/engine/prompt.h"
#include "runtime/engine/protocol.h"
#include "runtime/engine/window.h"

namespace minicpmv {
namespace {

namespace field = protocol::field;

constexpr char kGolden[] = "golden.json";
constexpr char kFormat[] = "minicpmv-golden";
constexpr int64_t kFormatVersion = 2;

// One of the likeliest tokens at a step, recorded when the bundle was made.
struct TopToken {
  int32_t id;
  double logit;
};

struct GoldenPrompt {
  std::vector<Message> messages;
  std::optional<std::string> image;  // name of a picture file
  int64_t max_new_tokens;
  std::vector<int32_t> ids;  // the expected answer
  // For the first of these ids: the likeliest tokens at that step, likeliest first.
  std::vector<std::vector<TopToken>> steps;
};

struct Golden {
  double tolerance;  // allowed difference of logits: processors round differently
  std::vector<GoldenPrompt> prompts;
};

int32_t ClampId(int64_t id) {
  // Clamped: an id that is too large matches no answer.
  return static_cast<int32_t>(std::min<int64_t>(id, std::numeric_limits<int32_t>::max()));
}

std::vector<TopToken> TakeStep(Fields* step) {
  std::vector<TopToken> tokens;
  for (Fields& entry : step->Objects("top")) {
    tokens.push_back({ClampId(entry.Integer("id", 0)), entry.Number("logit")});
    entry.RefuseUnknown();
  }
  step->RefuseUnknown();
  if (tokens.empty()) step->Refuse("no tokens");
  return tokens;
}

GoldenPrompt TakePrompt(Fields* entry, const DecoderConfig& c) {
  GoldenPrompt prompt{TakeMessages(entry),
                      entry->OptionalString(field::kImage),
                      entry->Integer(field::kMaxNewTokens, 1),
                      {},
                      {}};
  for (const int64_t id : entry->Integers(field::kIds)) prompt.ids.push_back(ClampId(id));
  for (Fields& step : entry->Objects("steps")) prompt.steps.push_back(TakeStep(&step));
  entry->RefuseUnknown();
  if (prompt.messages.empty()) entry->Refuse("no messages");
  if (prompt.steps.size() > prompt.ids.size()) entry->Refuse("more steps than ids");
  for (const std::vector<TopToken>& step : prompt.steps) {
    for (const TopToken& token : step) {
      if (token.id >= c.vocab_size) entry->Refuse("a token is outside the vocabulary");
    }
  }
  return prompt;
}

Golden ReadGolden(const Bundle& bundle) {
  const auto text = bundle.Read(kGolden);
  if (!text) {
    throw EngineError(error_code::kNoGolden,
                      std::string("this bundle has no ") + kGolden + "; convert again");
  }
  Fields golden(ParseJson(*text, error_code::kInvalidBundle, kGolden), error_code::kInvalidBundle,
                kGolden);
  if (golden.String("format") != kFormat || golden.Integer("format_version", 0) != kFormatVersion) {
    golden.Refuse("unknown format or version; convert again");
  }
  Golden made{golden.Number("tolerance"), {}};
  for (Fields& entry : golden.Objects("prompts")) {
    made.prompts.push_back(TakePrompt(&entry, bundle.config().decoder));
  }
  golden.RefuseUnknown();
  if (made.prompts.empty()) golden.Refuse("no prompts");
  return made;
}

[[noreturn]] void ThrowCancelled() {
  throw EngineError(error_code::kCancelled, "the self-check was cancelled");
}

EncodedPicture Encode(Model* model, const std::string& name, const WorkHooks& hooks) {
  const auto path = model->bundle().Find(name);
  if (!path) {
    throw EngineError(error_code::kInvalidBundle,
                      std::string(kGolden) + ": the bundle lacks the picture " + name);
  }
  const PictureFile file(*path);
  const RgbPicture& pixels = file.picture();
  const Cut cut = model->config().vision->Plan({pixels.width, pixels.height});
  auto picture = model->pictures().Compute(pixels, cut, hooks);
  if (!picture) ThrowCancelled();
  return *std::move(picture);
}

// Teacher forcing: feeds a prompt and its expected answer to the decoder, in a separate cache.
class TeacherForcing {
 public:
  TeacherForcing(const Model& model, const GoldenPrompt& golden, const EncodedPicture* picture)
      : decoder_(model.blocks()),
        picture_(picture),
        prompt_(BuildPrompt(model.tokenizer(), golden.messages,
                            picture == nullptr ? 0 : model.config().vision->query_num,
                            picture == nullptr ? Grid{} : picture->grid)),
        // Large enough for all tokens: a sliding window is not what is checked here.
        cache_(model.config().decoder,
               kAttentionSinks + static_cast<int64_t>(prompt_.ids.size() + golden.ids.size())) {
    cache_.Reset(kAttentionSinks);
  }

  // Returns the logits (V,) after the prompt; valid until the next call.
  const float* Prefill(const WorkHooks& hooks) {
    const auto total = static_cast<int64_t>(prompt_.ids.size());
    std::optional<Tensor> hidden;
    for (int64_t start = 0; start < total; start += kPrefillChunk) {
      const int64_t count = std::min(kPrefillChunk, total - start);
      const Tensor x = decoder_.Embed(prompt_.ids.data() + start, count);
      if (picture_ != nullptr) PutPicture(*picture_, prompt_.image_starts, start, x);
      hidden = decoder_.Forward(x, &cache_, hooks.cancelled);
      if (!hidden) ThrowCancelled();
    }
    return decoder_.LastLogits(*hidden);
  }

  // Returns the logits (V,) after one more token.
  const float* Next(int32_t token, const WorkHooks& hooks) {
    const auto hidden = decoder_.Forward(decoder_.Embed(&token, 1), &cache_, hooks.cancelled);
    if (!hidden) ThrowCancelled();
    return decoder_.LastLogits(*hidden);
  }

 private:
  Decoder decoder_;
  const EncodedPicture* picture_;
  Prompt prompt_;
  KVCache cache_;
};

// Returns whether the recorded logits match along the expected answer.
bool SameLogits(const Model& model, const GoldenPrompt& golden, const EncodedPicture* picture,
                double tolerance, const WorkHooks& hooks) {
  if (golden.steps.empty()) return true;
  TeacherForcing forced(model, golden, picture);
  const float* logits = forced.Prefill(hooks);
  for (size_t i = 0; i < golden.steps.size(); ++i) {
    if (i > 0) logits = forced.Next(golden.ids[i - 1], hooks);
    for (const TopToken& token : golden.steps[i]) {
      // Negated, so that NaN fails.
      if (!(std::abs(logits[token.id] - token.logit) <= tolerance)) return false;
    }
  }
  return true;
}

// Returns whether an answer is the expected one, or first differs at a near-tie of two tokens.
bool SameIds(const std::vector<int32_t>& ids, int32_t end, const GoldenPrompt& golden,
             double tolerance) {
  const auto [mine, expected] =
      std::mismatch(ids.begin(), ids.end(), golden.ids.begin(), golden.ids.end());
  if (mine == ids.end() && expected == golden.ids.end()) return true;
  const auto at = static_cast<size_t>(expected - golden.ids.begin());
  if (at >= golden.steps.size()) return false;
  const int32_t chosen = mine == ids.end() ? end : *mine;
  const std::vector<TopToken>& step = golden.steps[at];
  return std::any_of(step.begin(), step.end(), [&](const TopToken& token) {
    return token.id == chosen && step.front().logit - token.logit <= tolerance;
  });
}

Check RunPrompt(Model* model, const GoldenPrompt& prompt, double tolerance,
                const WorkHooks& hooks) {
  ChatRequest request;
  request.messages = prompt.messages;
  request.max_new_tokens = prompt.max_new_tokens;
  std::optional<EncodedPicture> picture;
  if (prompt.image) {
    picture = Encode(model, *prompt.image, hooks);
    request.picture = &*picture;
  }
  model->generator().Reset();
  const Answer answer = model->generator().Generate(request, [](std::string_view) {}, hooks);
  model->generator().Reset();
  if (answer.stop == StopReason::kCancelled) ThrowCancelled();
  const bool passed =
      SameIds(answer.ids, model->config().decoder.eos_token_id, prompt, tolerance) &&
      SameLogits(*model, prompt, request.picture, tolerance, hooks);
  model->blocks().ReleaseMemory();
  return {prompt.messages.back().content, model->tokenizer().Decode(prompt.ids), answer.text,
          passed};
}

}  // namespace

std::vector<Check> RunSelfCheck(Model* model, const WorkHooks& hooks) {
  const Golden golden = ReadGolden(model->bundle());
  const auto total = static_cast<int64_t>(golden.prompts.size());
  const WorkHooks inner{[](int64_t, int64_t) {}, hooks.cancelled};
  std::vector<Check> checks;
  for (const GoldenPrompt& prompt : golden.prompts) {
    hooks.progress(static_cast<int64_t>(checks.size()), total);
    checks.push_back(RunPrompt(model, prompt, golden.tolerance, inner));
  }
  hooks.progress(total, total);
  return checks;
}

}  // namespace minicpmv
