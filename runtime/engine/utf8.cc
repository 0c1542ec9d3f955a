#include "runtime/engine/utf8.h"

#include <cstddef>
#include <cstdint>

namespace minicpmv {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
constexpr uint32_t kInvalid = 0xFFFFFFFF;

struct Character {
  uint32_t code;  // kInvalid if the bytes are not a character
  size_t size;    // bytes
};

bool IsContinuation(char c) { return (static_cast<uint8_t>(c) & 0xC0) == 0x80; }

// Decodes the first character of text, which is not empty.
Character First(std::string_view text) {
  const uint8_t lead = static_cast<uint8_t>(text[0]);
  if (lead < 0x80) return {lead, 1};
  const size_t size = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < size) return {kInvalid, 1};
  uint32_t code = lead & (0x7F >> size);
  for (size_t i = 1; i < size; ++i) {
    if (!IsContinuation(text[i])) return {kInvalid, 1};
    code = code << 6 | (static_cast<uint8_t>(text[i]) & 0x3F);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
  if (code < kSmallest[size] || code > 0x10FFFF || surrogate) return {kInvalid, 1};
  return {code, size};
}

// Unicode white space plus the separators U+001C to U+001F, which Python counts as white space.
bool IsSpace(uint32_t code) {
  switch (code) {
    case 0x20:
    case 0x85:
    case 0xA0:
    case 0x1680:
    case 0x2028:
    case 0x2029:
    case 0x202F:
    case 0x205F:
    case 0x3000:
      return true;
    default:
      return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x1F) ||
             (code >= 0x2000 && code <= 0x200A);
  }
}

// Returns where the last character of text, which is not empty, begins.
size_t LastStart(std::string_view text) {
  size_t start = text.size() - 1;
  while (start > 0 && IsContinuation(text[start])) --start;
  return start;
}

}  // namespace

bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    const Character first = First(text);
    if (first.code == kInvalid) return false;
    text.remove_prefix(first.size);
  }
  return true;
}

std::string_view StripSpace(std::string_view text) {
  while (!text.empty()) {
    const Character first = First(text);
    if (!IsSpace(first.code)) break;
    text.remove_prefix(first.size);
  }
  while (!text.empty()) {
    const size_t start = LastStart(text);
    if (!IsSpace(First(text.substr(start)).code)) break;
    text = text.substr(0, start);
  }
  return text;
}

std::string_view StripReplacements(std::string_view text) {
  while (text.size() >= kReplacement.size() &&
         text.substr(text.size() - kReplacement.size()) == kReplacement) {
    text.remove_suffix(kReplacement.size());
  }
  return text;
}

}  // namespace minicpmv
