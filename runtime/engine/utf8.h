// What the engine needs to know of Unicode, as Python's `str` knows it.
#ifndef MINICPMV_ENGINE_UTF8_H_
#define MINICPMV_ENGINE_UTF8_H_

#include <string_view>

namespace minicpmv {

// Says whether text is UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
bool IsValidUtf8(std::string_view text);

// Returns text without the white space at both ends, as `str.strip()`.
std::string_view StripSpace(std::string_view text);

// Returns text without the replacement characters (U+FFFD) at its end.
std::string_view StripReplacements(std::string_view text);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_UTF8_H_
