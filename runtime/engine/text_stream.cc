#include "runtime/engine/text_stream.h"

#include <algorithm>
#include <utility>

#include "runtime/engine/error.h"
#include "runtime/engine/utf8.h"

namespace minicpmv {

TextStream::TextStream(const Tokenizer& tokenizer, std::vector<std::string> stops, OnText on_text)
    : tokenizer_(tokenizer), stops_(std::move(stops)), on_text_(std::move(on_text)) {
  for (const std::string& stop : stops_) {
    if (!stop.empty() && IsValidUtf8(stop)) continue;
    throw EngineError(error_code::kInvalidRequest, "a stop string is empty or not valid UTF-8");
  }
}

void TextStream::Add(int32_t id) {
  // Decoding an id depends on its predecessors only within a run of byte tokens, and on whether it
  // is the first. So only the tail is decoded, and each id costs the same however long the answer.
  tail_.push_back(id);
  std::string text = settled_ + tokenizer_.Decode(tail_).substr(settled_tail_);
  if (tokenizer_.IsWhole(id)) {
    settled_ = text;
    tail_ = {id};
    settled_tail_ = tokenizer_.Decode(tail_).size();
  }
  std::string_view whole = CutAtStop(StripReplacements(text));
  if (!stopped_) whole.remove_suffix(whole.size() - PossibleStop(whole));
  Send(whole);
}

std::string TextStream::Finish(const std::vector<int32_t>& ids) {
  const std::string text = tokenizer_.Decode(ids);
  const std::string_view answer = CutAtStop(text);
  Send(answer);
  return std::string(StripSpace(answer));
}

// Returns text up to its first stop string.
std::string_view TextStream::CutAtStop(std::string_view text) {
  size_t first = std::string_view::npos;
  for (const std::string& stop : stops_) first = std::min(first, text.find(stop));
  stopped_ = stopped_ || first != std::string_view::npos;
  return text.substr(0, first);
}

// Returns where a stop string may have begun at the end of text; the text's size if nowhere.
size_t TextStream::PossibleStop(std::string_view text) const {
  size_t start = text.size();
  for (const std::string& stop : stops_) {
    for (size_t size = std::min(stop.size(), text.size()); size > 0; --size) {
      if (text.substr(text.size() - size) != std::string_view(stop).substr(0, size)) continue;
      start = std::min(start, text.size() - size);
      break;
    }
  }
  return start;
}

void TextStream::Send(std::string_view text) {
  text = StripSpace(text);
  if (text.size() <= sent_) return;
  on_text_(text.substr(sent_));
  sent_ = text.size();
}

}  // namespace minicpmv
