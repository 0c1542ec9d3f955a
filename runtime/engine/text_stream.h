// An answer's text as it grows, never cut inside a character.
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

// Passes text on as ids arrive; what it passed on is always the start of the answer.
//
// Characters outside the vocabulary come as bytes, one token each: they are held until the
// character is complete. White space is held until something follows, because an answer is
// stripped; and so is what may be the beginning of a stop string.
class TextStream {
 public:
  using OnText = std::function<void(std::string_view)>;

  // stops: strings that end an answer; it ends before the first one's first occurrence.
  // Throws EngineError (invalid_request): an empty stop string, or one that is not UTF-8.
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stops, OnText on_text);

  // Takes the next id.
  void Add(int32_t id);

  // Says whether a stop string has come; what follows it is not part of the answer.
  bool stopped() const { return stopped_; }

  // Passes on the rest of the answer `ids` and returns all of its text.
  std::string Finish(const std::vector<int32_t>& ids);

 private:
  std::string_view CutAtStop(std::string_view text);
  size_t PossibleStop(std::string_view text) const;
  void Send(std::string_view text);

  const Tokenizer& tokenizer_;
  const std::vector<std::string> stops_;
  const OnText on_text_;
  std::string settled_;        // the text that later ids cannot change
  std::vector<int32_t> tail_;  // the last id of the settled text, then those behind it
  size_t settled_tail_ = 0;    // bytes of the settled text that the tail's first id makes
  bool stopped_ = false;
  size_t sent_ = 0;  // bytes
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_TEXT_STREAM_H_
