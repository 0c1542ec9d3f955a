// JSON that nobody vouches for: TVM's parser behind a check that it can be parsed safely.
#ifndef MINICPMV_ENGINE_JSON_H_
#define MINICPMV_ENGINE_JSON_H_

#include <tvm/ffi/extra/json.h>

#include <cstddef>
#include <string>
#include <string_view>

namespace minicpmv {

namespace json = tvm::ffi::json;

// Brackets inside brackets. The parser calls itself for each, so a limit keeps it off the stack's
// end; what the engine reads has five.
inline constexpr size_t kMaxJsonDepth = 64;

// Parses a text that must be one JSON value.
// code, where: of the error.
// Throws EngineError: not JSON, or nested too deep.
json::Value ParseJson(std::string_view text, const std::string& code, const std::string& where);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_JSON_H_
