// A conversation in JSON: what `chat` and the golden prompts have in common.
#ifndef MINICPMV_ENGINE_CHAT_FIELDS_H_
#define MINICPMV_ENGINE_CHAT_FIELDS_H_

#include <cstdint>
#include <vector>

#include "runtime/engine/fields.h"
#include "runtime/engine/generator.h"
#include "runtime/engine/line_writer.h"

namespace minicpmv {

// Takes the field `messages`. Throws what `Fields` does.
std::vector<Message> TakeMessages(Fields* request);

// Takes the fields of sampling; what is missing is as in `SamplingOptions`.
SamplingOptions TakeSampling(Fields* request);

// Returns a reason as the protocol names it.
const char* NameOf(StopReason reason);

// Returns a token and its log-probability.
Line LineOf(const TokenLogprob& token);

// Returns what an answer took.
Line StatisticsOf(const Answer& answer);

template <typename Number>
json::Array ToJson(const std::vector<Number>& numbers) {
  json::Array list;
  for (const Number number : numbers) list.push_back(static_cast<int64_t>(number));
  return list;
}

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_CHAT_FIELDS_H_
