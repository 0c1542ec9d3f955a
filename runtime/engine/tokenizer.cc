#include "runtime/engine/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <utility>

#include "runtime/engine/error.h"
#include "runtime/engine/utf8.h"

namespace minicpmv {
namespace {

// Most padding rows of an embedding: its size is rounded up to a multiple of a power of two.
constexpr int64_t kMaxPadding = 255;
// Must survive a round trip unchanged, spaces and a character outside any vocabulary included.
constexpr char kRoundTripText[] = "  a  \n\U0010fffe";
constexpr char kSpace[] = "\u2581";  // SentencePiece's symbol for a space

[[noreturn]] void Refuse(const std::string& problem) {
  throw EngineError(error_code::kInvalidBundle, "tokenizer.model: " + problem);
}

// Reserved for the prompt, where they mark pictures and slices; user text must not contain them.
constexpr char kSliceStart[] = "<slice>", kSliceEnd[] = "</slice>";
constexpr std::string_view kPictureTags[] = {"<image>", "</image>", kSliceStart, kSliceEnd};

}  // namespace

Tokenizer::Tokenizer(std::string_view model, std::optional<SliceTags> slices)
    : processor_(std::make_unique<sentencepiece::SentencePieceProcessor>()), slices_(slices) {
  const auto status = processor_->LoadFromSerializedProto({model.data(), model.size()});
  if (!status.ok()) Refuse("not a SentencePiece model: " + status.ToString());
  vocab_size_ = processor_->GetPieceSize();
  constexpr const char* kControl[] = {"<unk>", "<s>", "</s>"};
  for (int32_t id = 0; id < 3; ++id) {
    if (id >= vocab_size_ || processor_->IdToPiece(id) != kControl[id]) {
      Refuse("ids 0, 1, 2 are not <unk>, <s>, </s>");
    }
  }
  image_start_id_ = processor_->PieceToId("<image>");
  image_end_id_ = processor_->PieceToId("</image>");
  for (const std::string_view tag : kPictureTags) {
    if (processor_->PieceToId({tag.data(), tag.size()}) == kUnknownId) continue;
    picture_tags_.emplace_back(tag);
  }
  if (slices_) {
    AddSliceTag(slices_->start);
    AddSliceTag(slices_->end);
  }
  const std::vector<int32_t> letter = Encode("a");
  if (letter.empty() || processor_->IdToPiece(letter[0]).rfind(kSpace, 0) == 0 ||
      Decode(Encode(kRoundTripText)) != kRoundTripText) {
    Refuse("does not round-trip text; it belongs to another model, or is truncated");
  }
}

Tokenizer::~Tokenizer() = default;

void Tokenizer::RequireFit(int64_t rows, bool pictures) const {
  if (vocab_size_ > rows || vocab_size_ < rows - kMaxPadding) {
    Refuse("has " + std::to_string(vocab_size_) + " pieces, the embedding has " +
           std::to_string(rows) + " rows; they belong to different models");
  }
  if (pictures && (image_start_id_ == kUnknownId || image_end_id_ == kUnknownId)) {
    Refuse("lacks the pieces <image> and </image>");
  }
}

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
  std::vector<int32_t> kept;
  kept.reserve(ids.size());
  for (const int32_t id : ids) {
    if (id != kUnknownId && id < vocab_size_) kept.push_back(id);
  }
  if (!kept.empty() && kept.back() == kEosId) kept.pop_back();
  std::string text;
  std::vector<int> run;
  for (const int32_t id : kept) {
    const std::string spelling = Spelling(id);
    if (spelling.empty()) {
      run.push_back(id);
      continue;
    }
    text += DecodeRun(std::exchange(run, {})) + spelling;
  }
  return text + DecodeRun(run);
}

std::string Tokenizer::Piece(int32_t id) const {
  return id < vocab_size_ ? processor_->IdToPiece(id) : "";
}

bool Tokenizer::IsWhole(int32_t id) const {
  return id < vocab_size_ && Spelling(id).empty() && !processor_->IsByte(id);
}

// Returns whether a picture tag begins at `start`.
bool Tokenizer::IsTagAt(std::string_view text, size_t start) const {
  return std::any_of(picture_tags_.begin(), picture_tags_.end(), [&](const std::string& tag) {
    return text.substr(start, tag.size()) == tag;
  });
}

// Reserves the piece of a slice's tag for the prompt; the file may call it `<reserved_22>`.
void Tokenizer::AddSliceTag(int32_t id) {
  const std::string piece = Piece(id);
  const bool is_tag = piece.size() > 2 && piece.front() == '<' && piece.back() == '>' &&
                      id != image_start_id_ && id != image_end_id_;
  std::vector<int32_t> ids;
  if (is_tag) Append(piece, &ids);
  if (ids != std::vector<int32_t>{id}) {
    Refuse("id " + std::to_string(id) + " is not a piece that is reserved for a tag of slices");
  }
  picture_tags_.push_back(piece);
}

std::string Tokenizer::Spelling(int32_t id) const {
  if (slices_ && id == slices_->start) return kSliceStart;
  if (slices_ && id == slices_->end) return kSliceEnd;
  return id > kEosId ? "" : processor_->IdToPiece(id);
}

void Tokenizer::Append(std::string_view text, std::vector<int32_t>* ids) const {
  std::vector<int> part;
  const auto status = processor_->Encode({text.data(), text.size()}, &part);
  if (!status.ok()) throw EngineError(error_code::kInternal, status.ToString());
  ids->insert(ids->end(), part.begin(), part.end());
}

// Decodes ids that contain no control tokens.
std::string Tokenizer::DecodeRun(const std::vector<int>& ids) const {
  std::string text;
  const auto status = processor_->Decode(ids, &text);
  if (!status.ok()) throw EngineError(error_code::kInternal, status.ToString());
  return text;
}

}  // namespace minicpmv
