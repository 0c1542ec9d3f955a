#include "runtime/engine/self_check.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

#include "runtime/engine/chat_fields.h"
#include "runtime/engine/picture_file.h"
#include "runtime/engine/protocol.h"

namespace minicpmv {
namespace {

namespace field = protocol::field;

constexpr char kGolden[] = "golden.json";
constexpr char kFormat[] = "minicpmv-golden";
constexpr int64_t kFormatVersion = 1;

struct GoldenPrompt {
  std::vector<Message> messages;
  std::optional<std::string> image;  // a picture file's name
  int64_t max_new_tokens;
  std::vector<int32_t> ids;  // the expected answer
};

GoldenPrompt TakePrompt(Fields* entry) {
  GoldenPrompt prompt{TakeMessages(entry),
                      entry->OptionalText(field::kImage),
                      entry->Integer(field::kMaxNewTokens, 1),
                      {}};
  for (const int64_t id : entry->Integers(field::kIds)) {
    // What is too large is no id of any answer.
    prompt.ids.push_back(
        static_cast<int32_t>(std::min<int64_t>(id, std::numeric_limits<int32_t>::max())));
  }
  entry->RefuseOthers();
  if (prompt.messages.empty()) entry->Refuse("no messages");
  return prompt;
}

std::vector<GoldenPrompt> ReadGolden(const Bundle& bundle) {
  const auto text = bundle.Read(kGolden);
  if (!text) {
    throw EngineError(error_code::kNoGolden,
                      std::string("this bundle has no ") + kGolden + "; convert again");
  }
  Fields golden(ParseJson(*text, error_code::kInvalidBundle, kGolden), error_code::kInvalidBundle,
                kGolden);
  if (golden.Text("format") != kFormat || golden.Integer("format_version", 0) != kFormatVersion) {
    golden.Refuse("of another format or version; convert again");
  }
  std::vector<GoldenPrompt> prompts;
  for (Fields& entry : golden.Objects("prompts")) prompts.push_back(TakePrompt(&entry));
  golden.RefuseOthers();
  if (prompts.empty()) golden.Refuse("no prompts");
  return prompts;
}

[[noreturn]] void Cancel() {
  throw EngineError(error_code::kCancelled, "the self-check was cancelled");
}

EncodedPicture Encode(Model* model, const std::string& name, const WorkHooks& hooks) {
  const auto path = model->bundle().Find(name);
  if (!path) {
    throw EngineError(error_code::kInvalidBundle,
                      std::string(kGolden) + ": the bundle lacks the picture " + name);
  }
  auto picture = model->pictures().Compute(PictureFile(*path).picture(), hooks);
  if (!picture) Cancel();
  return *std::move(picture);
}

Check Ask(Model* model, const GoldenPrompt& prompt, const WorkHooks& hooks) {
  ChatRequest request;
  request.messages = prompt.messages;
  request.max_new_tokens = prompt.max_new_tokens;
  std::optional<EncodedPicture> picture;
  if (prompt.image) {
    picture = Encode(model, *prompt.image, hooks);
    request.picture = &*picture;
  }
  model->generator().Reset();
  const Answer answer = model->generator().Generate(
      request, [](std::string_view) {}, hooks);
  model->generator().Reset();
  if (answer.stop == StopReason::kCancelled) Cancel();
  return {prompt.messages.back().content, model->tokenizer().Decode(prompt.ids), answer.text,
          answer.ids == prompt.ids};
}

}  // namespace

std::vector<Check> RunSelfCheck(Model* model, const WorkHooks& hooks) {
  const std::vector<GoldenPrompt> prompts = ReadGolden(model->bundle());
  const auto total = static_cast<int64_t>(prompts.size());
  const WorkHooks inner{[](int64_t, int64_t) {}, hooks.cancelled};
  std::vector<Check> checks;
  for (const GoldenPrompt& prompt : prompts) {
    hooks.progress(static_cast<int64_t>(checks.size()), total);
    checks.push_back(Ask(model, prompt, inner));
  }
  hooks.progress(total, total);
  return checks;
}

}  // namespace minicpmv
