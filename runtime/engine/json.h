// Untrusted JSON: TVM's parser, guarded by a depth check.
#ifndef MINICPMV_ENGINE_JSON_H_
#define MINICPMV_ENGINE_JSON_H_

#include <tvm/ffi/extra/json.h>

#include <cstddef>
#include <string>
#include <string_view>

namespace minicpmv {

namespace json = tvm::ffi::json;

// Nesting of brackets. The parser is recursive, so a limit prevents a stack overflow; the engine's
// own files and requests nest five levels.
inline constexpr size_t kMaxJsonDepth = 64;

// Parses exactly one JSON value.
// code, where: the error's code, and the prefix of its message.
// Throws EngineError: not JSON, or nested too deep.
json::Value ParseJson(std::string_view text, const std::string& code, const std::string& where);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_JSON_H_
