// Builds the token ids of a conversation, exactly as the original model's code does.
#ifndef MINICPMV_ENGINE_PROMPT_H_
#define MINICPMV_ENGINE_PROMPT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/engine/slices.h"
#include "runtime/engine/tokenizer.h"

namespace minicpmv {

inline constexpr int64_t kOriginalPromptLimit = 2048;  // ids; the original drops the rest

// One turn; role is `user` or `assistant`.
struct Message {
  std::string role;
  std::string content;
};

// A tokenized conversation.
struct Prompt {
  std::vector<int32_t> ids;
  // Where the placeholders of each image begin: the overview's, then the slices'. Empty without a
  // picture.
  std::vector<int64_t> image_starts;
  std::optional<int64_t> picture_end;  // index of the picture's last tag; nullopt: no picture

  // Keeps the first kOriginalPromptLimit ids, as the original does with long prompts.
  // Throws EngineError (prompt_too_long): it would cut the picture.
  void CutAsOriginal();
};

// Checks that user and assistant alternate, that the first and last turns are the user's, and that
// the last one is not empty.
// as_original: turns after the first may have any role and may be empty, as in the original model.
// Throws EngineError (invalid_request, invalid_text).
void CheckConversation(const std::vector<Message>& messages, bool as_original);

// Builds the ids of a conversation, already checked, for the assistant to continue.
// image_tokens: placeholders for each image of the picture in the first turn; 0 without a picture.
// grid: of the picture's slices, for a tokenizer that has the tags of slices.
Prompt BuildPrompt(const Tokenizer& tokenizer, const std::vector<Message>& messages,
                   int64_t image_tokens, Grid grid);

// Returns how many ids a user's turn takes, including the role markers around it.
int64_t TurnTokens(const Tokenizer& tokenizer, std::string_view content);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_PROMPT_H_
