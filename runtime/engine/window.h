// The KV cache's window as integers: which tokens are kept, seen and shared, and in which slots.
#ifndef MINICPMV_ENGINE_WINDOW_H_
#define MINICPMV_ENGINE_WINDOW_H_

#include <cstdint>
#include <optional>
#include <vector>

namespace minicpmv {

inline constexpr int64_t kAttentionSinks = 4;

// What a cached token was computed from: a token's id, or one of a picture's image tokens.
struct CacheKey {
  uint64_t picture;  // stands for the picture's pixels; 0: no picture but a token
  int64_t id;        // the token's, or the image token's index

  bool operator==(const CacheKey& other) const {
    return picture == other.picture && id == other.id;
  }
  bool operator!=(const CacheKey& other) const { return !(*this == other); }
};

// Returns what a prompt's tokens are computed from. image_start: index of the first of
// `image_tokens` placeholders; none without a picture.
std::vector<CacheKey> RequestKeys(const std::vector<int32_t>& ids,
                                  std::optional<int64_t> image_start, int64_t image_tokens,
                                  uint64_t picture);

// Returns how many of a prompt's tokens are never evicted: the attention sinks and, with a
// picture, all up to its closing tag.
int64_t PinnedTokens(std::optional<int64_t> image_start, int64_t image_tokens);

// Checks that a prompt's last turn fits beside the pinned tokens; earlier turns may slide out.
// last_turn: its tokens, at most those behind the pinned ones count. total: the prompt's.
// Throws EngineError (prompt_too_long).
void CheckFit(int64_t window, int64_t pinned, int64_t last_turn, int64_t total);

// One conversation's tokens in a cache with a fixed number of slots.
//
// A token sees at most `window` tokens, itself included: the first `pinned`, and the newest of the
// rest. Token j is in slot j while j < pinned. Behind the pinned slots, rounded up to whole tiles,
// the other slots are a ring in which the newest tokens overwrite the oldest. A chunk's tokens
// are all stored before its queries attend, so the ring is longer than what one query sees of it.
// The rules are those of `runtime.reference.kv_cache`.
class Window {
 public:
  // Returns the slots, whole tiles, that `chunk` new tokens at once need.
  static int64_t SlotsFor(int64_t window, int64_t pinned, int64_t chunk, int64_t tile);

  // tile: slots that are only ever used together, 1 or more.
  // Throws EngineError (prompt_too_long): no room beside the pinned tokens.
  Window(int64_t window, int64_t pinned, int64_t slots, int64_t tile);

  int64_t length() const { return length_; }  // tokens seen, evicted ones included
  int64_t window() const { return window_; }
  int64_t pinned() const { return pinned_; }
  int64_t ring() const { return slots_ - ring_start_; }  // slots

  // The most tokens that one Append may announce.
  int64_t chunk() const { return ring() - (window_ - pinned_); }

  // Returns the slot of the token at an index in the conversation.
  int64_t Slot(int64_t index) const;

  // Says whether the query at an index sees the key at another.
  bool Sees(int64_t query, int64_t key) const;

  // Returns the index from which a query sees pinned keys: their distance stops growing.
  int64_t PinnedPosition(int64_t query) const;

  // Returns the first token behind the pinned ones that is kept for the next query.
  int64_t OldestKept() const { return OldestKeptAt(length_); }

  // Announces new tokens, 1 to chunk() of them.
  void Append(int64_t count);

  // Goes back to the first `length` tokens. Returns false, and changes nothing, if tokens that
  // would be visible again are gone.
  bool Truncate(int64_t length);

  // Goes back to what the conversation shares with a request, or to nothing where that fails.
  // The request's last token is never shared: its logits are the answer's start.
  // cached: what the tokens so far, length() of them, were computed from. pinned: the request's.
  // Returns the tokens that stay: length().
  int64_t Rewind(const std::vector<CacheKey>& cached, const std::vector<CacheKey>& request,
                 int64_t pinned);

 private:
  int64_t OldestKeptAt(int64_t length) const;

  int64_t window_, pinned_, slots_, tile_;
  int64_t ring_start_;  // slot
  int64_t length_ = 0;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_WINDOW_H_
