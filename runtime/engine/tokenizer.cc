#include "runtime/engine/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>

#include "runtime/engine/error.h"
#include "runtime/engine/utf8.h"

namespace minicpmv {
namespace {

bool ConsumePrefix(std::string_view prefix, std::string_view* text) {
  if (text->substr(0, prefix.size()) != prefix) return false;
  text->remove_prefix(prefix.size());
  return true;
}

bool IsDigits(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

// Says whether a piece is a control piece that text could spell, such as `<image>`. The other
// pieces in angle brackets (`<b>`, `</td>`) are markup that the model reads and writes as text.
bool IsTag(std::string_view piece) {
  if (piece.size() < 3 || piece.front() != '<' || piece.back() != '>') return false;
  std::string_view name = piece.substr(1, piece.size() - 2);
  if (ConsumePrefix("reserved_", &name)) return IsDigits(name);
  if (name == "SEP" || name == "CLS") return true;
  ConsumePrefix("/", &name);
  constexpr std::string_view kNames[] = {"image", "ref", "box", "quad", "point", "slice"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

}  // namespace

Tokenizer::Tokenizer(std::string_view model)
    : processor_(std::make_unique<sentencepiece::SentencePieceProcessor>()) {
  const auto status = processor_->LoadFromSerializedProto({model.data(), model.size()});
  if (!status.ok()) {
    throw EngineError(error_code::kInvalidBundle,
                      "tokenizer.model: not a SentencePiece model: " + status.ToString());
  }
  vocab_size_ = processor_->GetPieceSize();
  constexpr const char* kControl[] = {"<unk>", "<s>", "</s>"};
  for (int32_t id = 0; id < 3; ++id) {
    if (id >= vocab_size_ || processor_->IdToPiece(id) != kControl[id]) {
      throw EngineError(error_code::kInvalidBundle,
                        "tokenizer.model: ids 0, 1, 2 are not <unk>, <s>, </s>");
    }
  }
  image_start_id_ = processor_->PieceToId("<image>");
  image_end_id_ = processor_->PieceToId("</image>");
  FindTags();
}

Tokenizer::~Tokenizer() = default;

std::vector<int32_t> Tokenizer::Encode(std::string_view text) const {
  if (!IsValidUtf8(text)) {
    throw EngineError(error_code::kInvalidText, "the text is not valid UTF-8");
  }
  std::vector<int32_t> ids;
  size_t start = 0;  // of the text that is not encoded yet
  for (size_t at = text.find('<'); at != std::string_view::npos; at = text.find('<', at + 1)) {
    if (!IsTagAt(text, at)) continue;
    Append(text.substr(start, at + 1 - start), &ids);
    start = at + 1;
  }
  Append(text.substr(start), &ids);
  return ids;
}

std::string Tokenizer::Decode(const std::vector<int32_t>& ids) const {
  std::vector<int> kept;
  kept.reserve(ids.size());
  for (const int32_t id : ids) {
    if (!Vanishes(id)) kept.push_back(id);
  }
  std::string text;
  const auto status = processor_->Decode(kept, &text);
  if (!status.ok()) throw EngineError(error_code::kInternal, status.ToString());
  return text;
}

bool Tokenizer::IsWhole(int32_t id) const { return !Vanishes(id) && !processor_->IsByte(id); }

void Tokenizer::FindTags() {
  for (int32_t id = 0; id < vocab_size_; ++id) {
    const std::string& piece = processor_->IdToPiece(id);
    if (!IsTag(piece)) continue;
    tags_.insert(piece);
    longest_tag_ = std::max(longest_tag_, piece.size());
  }
}

// Says whether a tag begins at `start`, where a '<' is. No tag is another's beginning, and none
// begins inside another: only their first character is a '<', only their last a '>'.
bool Tokenizer::IsTagAt(std::string_view text, size_t start) const {
  const std::string_view nearby = text.substr(start, longest_tag_);
  const size_t end = nearby.find('>');
  return end != std::string_view::npos && tags_.count(std::string(nearby.substr(0, end + 1))) > 0;
}

void Tokenizer::Append(std::string_view text, std::vector<int32_t>* ids) const {
  std::vector<int> part;
  const auto status = processor_->Encode({text.data(), text.size()}, &part);
  if (!status.ok()) throw EngineError(error_code::kInternal, status.ToString());
  ids->insert(ids->end(), part.begin(), part.end());
}

bool Tokenizer::Vanishes(int32_t id) const {
  return id <= kEosId || id >= vocab_size_;  // the first three are <unk>, <s>, </s>
}

}  // namespace minicpmv
