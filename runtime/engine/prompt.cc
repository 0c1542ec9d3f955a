#include "runtime/engine/prompt.h"

#include <algorithm>
#include <cstddef>

#include "runtime/engine/error.h"
#include "runtime/engine/utf8.h"

namespace minicpmv {
namespace {

constexpr char kUser[] = "<用户>";
constexpr char kAssistant[] = "<AI>";

[[noreturn]] void Refuse(const std::string& message) {
  throw EngineError(error_code::kInvalidRequest, message);
}

}  // namespace

void Prompt::CutAsOriginal() {
  if (picture_end && *picture_end >= kOriginalPromptLimit) {
    throw EngineError(error_code::kPromptTooLong,
                      "the picture takes " + std::to_string(*picture_end + 1) +
                          " tokens with what stands before it, more than the " +
                          std::to_string(kOriginalPromptLimit) +
                          " of a prompt that the original keeps: leave out as_original, or try a "
                          "lower max_slices");
  }
  ids.resize(std::min(ids.size(), static_cast<size_t>(kOriginalPromptLimit)));
}

void CheckConversation(const std::vector<Message>& messages, bool as_original) {
  if (messages.empty()) Refuse("the conversation is empty; expected at least one user turn");
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string where = "message " + std::to_string(i);
    const std::string& role = messages[i].role;
    if (as_original && i > 0) {
      if (role != "user" && role != "assistant") {
        Refuse(where + ": expected a turn of role user or assistant");
      }
    } else if (const char* expected = i % 2 == 0 ? "user" : "assistant"; role != expected) {
      Refuse(where + ": expected a turn of role " + expected);
    }
    if (!IsValidUtf8(messages[i].content)) {
      throw EngineError(error_code::kInvalidText, where + " is not valid UTF-8 text");
    }
  }
  if (as_original) return;
  if (messages.size() % 2 == 0) Refuse("the last message is the assistant's; expected a user's");
  if (StripSpace(messages.back().content).empty()) {
    Refuse("the prompt is empty; expected a question");
  }
}

Prompt BuildPrompt(const Tokenizer& tokenizer, const std::vector<Message>& messages,
                   int64_t image_tokens, Grid grid) {
  // The conversation is encoded as one text, split only at the picture: pieces may merge across
  // turns.
  std::string text;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (i > 0) text += messages[i].role == "user" ? kUser : kAssistant;
    text += messages[i].content;
  }
  text += kAssistant;
  Prompt prompt;
  prompt.ids = {kBosId};
  const auto append = [&](const std::string& part) {
    const std::vector<int32_t> ids = tokenizer.Encode(part);
    prompt.ids.insert(prompt.ids.end(), ids.begin(), ids.end());
  };
  if (image_tokens == 0) {
    append(kUser + text);
    return prompt;
  }
  const auto append_image = [&] {
    prompt.ids.push_back(tokenizer.image_start_id());
    prompt.image_starts.push_back(static_cast<int64_t>(prompt.ids.size()));
    prompt.ids.insert(prompt.ids.end(), static_cast<size_t>(image_tokens), kUnknownId);
    prompt.ids.push_back(tokenizer.image_end_id());
  };
  append(kUser);
  append_image();
  if (!grid.empty()) {
    prompt.ids.push_back(tokenizer.slice_tags().start);
    for (int64_t row = 0; row < grid.rows; ++row) {
      if (row > 0) append("\n");
      for (int64_t column = 0; column < grid.columns; ++column) append_image();
    }
    prompt.ids.push_back(tokenizer.slice_tags().end);
  }
  prompt.picture_end = static_cast<int64_t>(prompt.ids.size()) - 1;
  append("\n" + text);
  return prompt;
}

int64_t TurnTokens(const Tokenizer& tokenizer, std::string_view content) {
  const std::string turn = kUser + std::string(content) + kAssistant;
  return static_cast<int64_t>(tokenizer.Encode(turn).size());
}

}  // namespace minicpmv
