// Text to token ids and back: SentencePiece with MiniCPM-V's rules for spelled special pieces.
#ifndef MINICPMV_ENGINE_TOKENIZER_H_
#define MINICPMV_ENGINE_TOKENIZER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace minicpmv {

inline constexpr int32_t kUnknownId = 0;
inline constexpr int32_t kBosId = 1;
inline constexpr int32_t kEosId = 2;

// Gives the ids that `runtime.inputs.prompt.Tokenizer` gives: grounding tags are pieces, a picture's and a
// slice's stay text.
class Tokenizer {
 public:
  // Loads a `tokenizer.model`, given as the bytes of the file; they are copied.
  // Throws EngineError (invalid_bundle): no SentencePiece model of this family.
  explicit Tokenizer(std::string_view model);
  ~Tokenizer();

  // Throws EngineError (invalid_bundle) unless it belongs to a model of `rows` embedding rows, one
  // with a vision encoder if `pictures` says so; `convert/checkpoint/tokenizer_file.py` has the same rules.
  void RequireFit(int64_t rows, bool pictures) const;

  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  int32_t vocab_size() const { return vocab_size_; }
  // `<image>` and `</image>`; kUnknownId where the model has no such piece.
  int32_t image_start_id() const { return image_start_id_; }
  int32_t image_end_id() const { return image_end_id_; }

  // Encodes text; a spelled tag of pictures becomes its first character and the rest apart.
  // Throws EngineError (invalid_text): not UTF-8.
  std::vector<int32_t> Encode(std::string_view text) const;

  // Decodes an answer. Id 0 vanishes, and `</s>` where it is the last; `<s>` and any other `</s>`
  // are spelled. Ids that are no piece's vanish too: an embedding may have more rows than there are
  // pieces. Bytes that are no character become U+FFFD each.
  std::string Decode(const std::vector<int32_t>& ids) const;

  // Says whether an id is a piece of text in itself, wherever it stands: no control piece, and not
  // one byte of a character that the vocabulary lacks.
  bool IsWhole(int32_t id) const;

 private:
  bool IsTagAt(std::string_view text, size_t start) const;
  void Append(std::string_view text, std::vector<int32_t>* ids) const;
  std::string DecodeRun(const std::vector<int>& ids) const;

  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
  int32_t vocab_size_ = 0;
  int32_t image_start_id_ = kUnknownId;
  int32_t image_end_id_ = kUnknownId;
  std::vector<std::string_view> picture_tags_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_TOKENIZER_H_
