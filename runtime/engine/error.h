// The engine's one exception type; at the edge it becomes a JSON error line.
#ifndef MINICPMV_ENGINE_ERROR_H_
#define MINICPMV_ENGINE_ERROR_H_

#include <stdexcept>
#include <string>
#include <utility>

namespace minicpmv {

// What a client can tell errors apart by; `runtime/engine_client/protocol.py` names the same.
namespace error_code {
inline constexpr char kInvalidRequest[] = "invalid_request";        // malformed, or out of range
inline constexpr char kInvalidText[] = "invalid_text";              // text that is not UTF-8
inline constexpr char kInvalidPicture[] = "invalid_picture";        // a picture file that is none
inline constexpr char kInvalidEmbeddings[] = "invalid_embeddings";  // damaged, or foreign
inline constexpr char kInvalidBundle[] = "invalid_bundle";          // damaged, altered or foreign
inline constexpr char kOtherProgram[] = "other_program";            // a bundle for another engine
inline constexpr char kNotLoaded[] = "not_loaded";            // no bundle, or nothing of this kind
inline constexpr char kNoGolden[] = "no_golden";              // a bundle without golden prompts
inline constexpr char kCancelled[] = "cancelled";             // ended by the client
inline constexpr char kOutOfMemory[] = "out_of_memory";       // the system has too little
inline constexpr char kUnknownPicture[] = "unknown_picture";  // encoded never, or long ago
inline constexpr char kFileError[] = "file_error";            // cannot be read or written
inline constexpr char kPromptTooLong[] = "prompt_too_long";   // does not fit into the window
inline constexpr char kInvalidLogits[] = "invalid_logits";    // the model computed no numbers
inline constexpr char kUnsupportedCpu[] = "unsupported_cpu";  // lacks what the blocks need
inline constexpr char kInternal[] = "internal";               // our mistake, not the client's
}  // namespace error_code

// A failed request: a code for programs, and one line for people.
class EngineError : public std::runtime_error {
 public:
  EngineError(std::string code, const std::string& message)
      : std::runtime_error(message), code_(std::move(code)) {}

  const std::string& code() const { return code_; }

 private:
  std::string code_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_ERROR_H_
