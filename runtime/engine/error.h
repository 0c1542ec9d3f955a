// The engine's only exception type; the server turns it into a JSON error line.
#ifndef MINICPMV_ENGINE_ERROR_H_
#define MINICPMV_ENGINE_ERROR_H_

#include <stdexcept>
#include <string>
#include <utility>

namespace minicpmv {

// The error codes of the protocol; `runtime/engine_client/protocol.py` has the same.
namespace error_code {
inline constexpr char kInvalidRequest[] = "invalid_request";        // malformed, or out of range
inline constexpr char kInvalidText[] = "invalid_text";              // text that is not UTF-8
inline constexpr char kInvalidPicture[] = "invalid_picture";        // not a picture file
inline constexpr char kInvalidEmbeddings[] = "invalid_embeddings";  // damaged, or of another model
inline constexpr char kInvalidBundle[] = "invalid_bundle";          // damaged, or wrong version
inline constexpr char kOtherProgram[] = "other_program";            // a bundle for another engine
inline constexpr char kNotLoaded[] = "not_loaded";            // no bundle, or one that lacks it
inline constexpr char kNoGolden[] = "no_golden";              // a bundle without golden prompts
inline constexpr char kCancelled[] = "cancelled";             // by the client
inline constexpr char kOutOfMemory[] = "out_of_memory";       // an allocation failed
inline constexpr char kUnknownPicture[] = "unknown_picture";  // never encoded, or evicted
inline constexpr char kFileError[] = "file_error";            // cannot be read or written
inline constexpr char kPromptTooLong[] = "prompt_too_long";   // does not fit into the window
inline constexpr char kInvalidLogits[] = "invalid_logits";    // the model's logits are not finite
inline constexpr char kUnsupportedCpu[] = "unsupported_cpu";  // lacks features that blocks need
inline constexpr char kAlreadyRunning[] = "already_running";  // one engine in a process at a time
inline constexpr char kInternal[] = "internal";               // a bug in the engine
}  // namespace error_code

// A failed request: a code for programs and a one-line message for people.
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
