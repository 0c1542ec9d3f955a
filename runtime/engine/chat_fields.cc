#include "runtime/engine/chat_fields.h"

#include "runtime/engine/machine.h"
#include "runtime/engine/protocol.h"
#include "runtime/engine/utf8.h"

namespace minicpmv {
namespace {

namespace field = protocol::field;

double Rate(int64_t tokens, double ms) {
  return ms > 0 ? static_cast<double>(tokens) / ms * 1000 : 0;
}

}  // namespace

std::vector<Message> TakeMessages(Fields* request) {
  std::vector<Message> messages;
  for (Fields& message : request->Objects(field::kMessages)) {
    messages.push_back({message.String(field::kRole), message.String(field::kContent)});
    message.RefuseUnknown();
  }
  return messages;
}

SamplingOptions TakeSampling(Fields* request) {
  SamplingOptions options;
  options.do_sample = request->OptionalFlag(field::kDoSample).value_or(options.do_sample);
  options.temperature = request->OptionalNumber(field::kTemperature).value_or(options.temperature);
  options.top_k = request->OptionalInteger(field::kTopK, 1);
  options.top_p = request->OptionalNumber(field::kTopP).value_or(options.top_p);
  options.repetition_penalty =
      request->OptionalNumber(field::kRepetitionPenalty).value_or(options.repetition_penalty);
  if (const auto seed = request->OptionalInteger(field::kSeed, 0)) {
    options.seed = static_cast<uint64_t>(*seed);
  }
  return options;
}

const char* NameOf(StopReason reason) {
  switch (reason) {
    case StopReason::kEos:
      return protocol::stop::kEos;
    case StopReason::kLength:
      return protocol::stop::kLength;
    case StopReason::kStopString:
      return protocol::stop::kStopString;
    case StopReason::kCancelled:
      return protocol::stop::kCancelled;
  }
  return "";
}

Line LineOf(const TokenLogprob& token, const Tokenizer& tokenizer) {
  Line line;
  line.Set(field::kToken, static_cast<int64_t>(token.id))
      .Set(field::kLogprob, static_cast<double>(token.logprob));
  const std::string piece = tokenizer.Piece(token.id);
  if (!piece.empty() && IsValidUtf8(piece)) line.Set(field::kPiece, piece);
  return line;
}

Line StatisticsOf(const Answer& answer) {
  return Line()
      .Set(field::kPrefillMs, answer.prefill_ms)
      .Set(field::kDecodeMs, answer.decode_ms)
      .Set(field::kPromptTokens, answer.prompt_tokens)
      .Set(field::kReusedTokens, answer.reused_tokens)
      .Set(field::kGeneratedTokens, static_cast<int64_t>(answer.ids.size()))
      .Set(field::kDecodeSteps, answer.decode_steps)
      .Set(field::kDraftedTokens, answer.drafted)
      .Set(field::kAcceptedTokens, answer.accepted)
      .Set(field::kPrefillTokS,
           Rate(answer.prompt_tokens - answer.reused_tokens, answer.prefill_ms))
      .Set(field::kDecodeTokS, Rate(answer.decode_steps, answer.decode_ms))
      .Set(field::kPeakRssBytes, PeakRssBytes());
}

}  // namespace minicpmv
