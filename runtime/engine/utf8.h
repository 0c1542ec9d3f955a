// The UTF-8 helpers that the engine needs, with the semantics of Python's `str`.
#ifndef MINICPMV_ENGINE_UTF8_H_
#define MINICPMV_ENGINE_UTF8_H_

#include <string_view>

namespace minicpmv {

// Returns whether text is UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
bool IsValidUtf8(std::string_view text);

// Returns text without white space at both ends, like `str.strip()`.
std::string_view StripSpace(std::string_view text);

// Returns text without replacement characters (U+FFFD) at its end.
std::string_view StripReplacements(std::string_view text);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_UTF8_H_
