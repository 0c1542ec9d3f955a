// JSON fields of a conversation, shared by `chat` and the golden prompts.
#ifndef MINICPMV_ENGINE_CHAT_FIELDS_H_
#define MINICPMV_ENGINE_CHAT_FIELDS_H_

#include <cstdint>
#include <vector>

#include "runtime/engine/fields.h"
#include "runtime/engine/generator.h"
#include "runtime/engine/line_writer.h"
#include "runtime/engine/tokenizer.h"

namespace minicpmv {

// Takes the field `messages`. Throws as `Fields` does.
std::vector<Message> TakeMessages(Fields* request);

// Takes the sampling fields; missing ones keep the defaults of `SamplingOptions`.
SamplingOptions TakeSampling(Fields* request);

// Returns the protocol's name of a stop reason.
const char* NameOf(StopReason reason);

// Returns the fields of a token: its id, its log-probability, and its piece if it has one.
Line LineOf(const TokenLogprob& token, const Tokenizer& tokenizer);

// Returns the field `statistics` of an answer.
Line StatisticsOf(const Answer& answer);

template <typename Number>
json::Array ToJson(const std::vector<Number>& numbers) {
  json::Array list;
  for (const Number number : numbers) list.push_back(static_cast<int64_t>(number));
  return list;
}

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_CHAT_FIELDS_H_
