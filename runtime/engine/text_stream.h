// Streams an answer's text as tokens arrive, never splitting a character.
#ifndef MINICPMV_ENGINE_TEXT_STREAM_H_
#define MINICPMV_ENGINE_TEXT_STREAM_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/engine/tokenizer.h"

namespace minicpmv {

// What was streamed is always a prefix of the answer.
//
// Characters outside the vocabulary arrive as bytes, one token each, and are held until the
// character is complete. White space is held until something follows it, because an answer is
// stripped; so is a possible beginning of a stop string.
class TextStream {
 public:
  using OnText = std::function<void(std::string_view)>;

  // stops: stop strings; the answer ends before the first occurrence of any of them.
  // Throws EngineError (invalid_request): an empty stop string, or one that is not UTF-8.
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stops, OnText on_text);

  // Adds the next id.
  void Add(int32_t id);

  // Returns whether a stop string has occurred; what follows it is not part of the answer.
  bool stopped() const { return stopped_; }

  // Sends the rest of the answer `ids` and returns its whole text.
  std::string Finish(const std::vector<int32_t>& ids);

 private:
  std::string_view CutAtStop(std::string_view text);
  size_t PossibleStop(std::string_view text) const;
  void Send(std::string_view text);

  const Tokenizer& tokenizer_;
  const std::vector<std::string> stops_;
  const OnText on_text_;
  std::string settled_;        // text that later ids cannot change
  std::vector<int32_t> tail_;  // the last id of the settled text, then those after it
  size_t settled_tail_ = 0;    // bytes of settled text that come from the tail's first id
  bool stopped_ = false;
  size_t sent_ = 0;  // bytes
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_TEXT_STREAM_H_
