// Converts text to token ids and back: SentencePiece with MiniCPM-V's rules for special tokens that
// are spelled out in text.
#ifndef MINICPMV_ENGINE_TOKENIZER_H_
#define MINICPMV_ENGINE_TOKENIZER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/engine/slices.h"

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace minicpmv {

inline constexpr int32_t kUnknownId = 0;
inline constexpr int32_t kBosId = 1;
inline constexpr int32_t kEosId = 2;

// Produces the same ids as `runtime.inputs.prompt.Tokenizer`: grounding tags are encoded as special
// tokens; picture and slice tags stay text.
class Tokenizer {
 public:
  // Loads a `tokenizer.model` from the bytes of the file, which are copied.
  // slices: the tags around slices, whose pieces may have other names there; nullopt: a model
  // without slices.
  // Throws EngineError (invalid_bundle): not a SentencePiece model of this family, or without these
  // tags.
  explicit Tokenizer(std::string_view model, std::optional<SliceTags> slices = std::nullopt);
  ~Tokenizer();

  // Checks that it fits a model with `rows` embedding rows, and with a vision encoder if `pictures`
  // is set; `convert/checkpoint/tokenizer_file.py` has the same rules.
  // Throws EngineError (invalid_bundle): it does not.
  void RequireFit(int64_t rows, bool pictures) const;

  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  int32_t vocab_size() const { return vocab_size_; }
  // `<image>` and `</image>`; kUnknownId if the model has no such piece.
  int32_t image_start_id() const { return image_start_id_; }
  int32_t image_end_id() const { return image_end_id_; }
  // Only of a model with slices.
  SliceTags slice_tags() const { return *slices_; }

  // Encodes text; a picture tag in it is split after its first character, so that it stays text.
  // Throws EngineError (invalid_text): not UTF-8.
  std::vector<int32_t> Encode(std::string_view text) const;

  // Decodes an answer. Drops id 0, a final `</s>`, and ids without a piece (an embedding may have
  // more rows than there are pieces). Spells out `<s>`, any other `</s>`, and the tags of slices.
  // Each byte that is not part of a valid character becomes U+FFFD.
  std::string Decode(const std::vector<int32_t>& ids) const;

  // Returns how the vocabulary spells an id: spaces as `▁`, one byte of a character that it lacks as
  // `<0xE4>`. Empty for an id without a piece.
  std::string Piece(int32_t id) const;

  // Returns whether an id decodes to text on its own: not a control token, and not one byte of a
  // character outside the vocabulary.
  bool IsWhole(int32_t id) const;

 private:
  bool IsTagAt(std::string_view text, size_t start) const;
  void Append(std::string_view text, std::vector<int32_t>* ids) const;
  void AddSliceTag(int32_t id);
  // Returns an id's text if it is not the library that spells it; empty otherwise.
  std::string Spelling(int32_t id) const;
  std::string DecodeRun(const std::vector<int>& ids) const;

  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
  int32_t vocab_size_ = 0;
  int32_t image_start_id_ = kUnknownId;
  int32_t image_end_id_ = kUnknownId;
  std::optional<SliceTags> slices_;
  std::vector<std::string> picture_tags_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_TOKENIZER_H_
