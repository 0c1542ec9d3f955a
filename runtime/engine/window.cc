#include "runtime/engine/window.h"

#include <algorithm>
#include <cstddef>
#include <string>

#include "runtime/engine/error.h"

namespace minicpmv {
namespace {

int64_t RoundUp(int64_t value, int64_t tile) { return (value + tile - 1) / tile * tile; }

void Require(bool condition, const char* message) {
  if (!condition) throw EngineError(error_code::kInternal, message);
}

int64_t CommonPrefix(const std::vector<CacheKey>& a, const std::vector<CacheKey>& b) {
  const size_t limit = std::min(a.size(), b.size());
  size_t shared = 0;
  while (shared < limit && a[shared] == b[shared]) ++shared;
  return static_cast<int64_t>(shared);
}

}  // namespace

std::vector<CacheKey> RequestKeys(const std::vector<int32_t>& ids,
                                  const std::vector<int64_t>& image_starts, int64_t image_tokens,
                                  uint64_t picture) {
  std::vector<CacheKey> keys;
  keys.reserve(ids.size());
  for (const int32_t id : ids) keys.push_back({0, id});
  int64_t place = 0;  // among all image tokens of the picture
  for (const int64_t start : image_starts) {
    for (int64_t i = 0; i < image_tokens; ++i, ++place) {
      // A prompt that was cut may lack the rest.
      const auto at = static_cast<size_t>(start + i);
      if (at < keys.size()) keys[at] = {picture, place};
    }
  }
  return keys;
}

int64_t PinnedTokens(std::optional<int64_t> picture_end) {
  return picture_end ? std::max(kAttentionSinks, *picture_end + 1) : kAttentionSinks;
}

void CheckFit(int64_t window, int64_t pinned, int64_t last_turn, int64_t total, bool has_slices) {
  const int64_t room = window - pinned;
  const int64_t last = std::min(last_turn, total - pinned);
  if (room > 0 && last <= room) return;
  throw EngineError(
      error_code::kPromptTooLong,
      "the prompt has " + std::to_string(total) + " tokens; its last turn takes " +
          std::to_string(last) + ", and the context window of " + std::to_string(window) +
          " has room for " + std::to_string(std::max<int64_t>(room, 0)) + " beside " +
          std::to_string(pinned) + " pinned ones: shorten the turn, or try a larger window" +
          (has_slices ? " or a lower max_slices" : ""));
}

int64_t Window::SlotsFor(int64_t window, int64_t pinned, int64_t chunk, int64_t tile) {
  return RoundUp(pinned, tile) + RoundUp(window - pinned + chunk, tile);
}

Window::Window(int64_t window, int64_t pinned, int64_t slots, int64_t tile)
    : window_(window), pinned_(pinned), slots_(slots), tile_(tile) {
  if (pinned < 1 || pinned >= window) {
    throw EngineError(error_code::kPromptTooLong,
                      "context window " + std::to_string(window) + " leaves no room beside " +
                          std::to_string(pinned) + " pinned tokens; try a larger window");
  }
  Require(tile > 0 && slots % tile == 0, "the cache's slots are not whole tiles");
  ring_start_ = RoundUp(pinned, tile);
  Require(chunk() > 0, "the cache has too few slots for its window");
}

int64_t Window::Slot(int64_t index) const {
  return index < pinned_ ? index : ring_start_ + (index - pinned_) % ring();
}

bool Window::Sees(int64_t query, int64_t key) const {
  return key <= query && (key < pinned_ || key > query - (window_ - pinned_));
}

int64_t Window::PinnedPosition(int64_t query) const { return std::min(query, window_ - 1); }

void Window::Append(int64_t count) {
  Require(count > 0 && count <= chunk(), "more tokens at once than the cache's ring has room for");
  length_ += count;
}

bool Window::Truncate(int64_t length) {
  Require(length >= 0 && length <= length_, "the cache cannot rewind past its end");
  if (length > pinned_ && OldestKeptAt(length_) > OldestKeptAt(length)) return false;
  length_ = length;
  return true;
}

void Window::Drop(int64_t count) {
  Require(count >= 0 && count < chunk() && count <= length_, "more dropped than were appended");
  length_ -= count;
}

int64_t Window::Rewind(const std::vector<CacheKey>& cached, const std::vector<CacheKey>& request,
                       int64_t pinned) {
  Require(static_cast<int64_t>(cached.size()) == length_,
          "the keys do not match the cached tokens");
  const int64_t limit = static_cast<int64_t>(request.size()) - 1;
  const int64_t reused = std::min(CommonPrefix(cached, request), limit);
  if (pinned != pinned_ || reused <= 0 || !Truncate(reused)) {
    *this = Window(window_, pinned, slots_, tile_);
  }
  return length_;
}

int64_t Window::OldestKeptAt(int64_t length) const {
  return std::max(pinned_, length - (window_ - pinned_) + 1);
}

}  // namespace minicpmv
