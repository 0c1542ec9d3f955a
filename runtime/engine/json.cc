#include "runtime/engine/json.h"

#include <tvm/ffi/string.h>

#include <algorithm>

#include "runtime/engine/error.h"

namespace minicpmv {
namespace {

// Returns the deepest nesting of brackets. Also an upper bound for malformed text: the parser stops
// at the first error and recurses only once for each bracket before it.
size_t Depth(std::string_view text) {
  size_t depth = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return deepest;
}

}  // namespace

json::Value ParseJson(std::string_view text, const std::string& code, const std::string& where) {
  if (Depth(text) > kMaxJsonDepth) {
    throw EngineError(code, where + ": nested deeper than " + std::to_string(kMaxJsonDepth));
  }
  tvm::ffi::String problem;
  json::Value value = json::Parse(tvm::ffi::String(text.data(), text.size()), &problem);
  if (!problem.empty()) throw EngineError(code, where + ": not JSON: " + std::string(problem));
  return value;
}

}  // namespace minicpmv
