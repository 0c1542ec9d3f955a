// The bookkeeping of the KV cache: which tokens are kept, visible and reused, and in which slots.
#ifndef MINICPMV_ENGINE_WINDOW_H_
#define MINICPMV_ENGINE_WINDOW_H_

#include <cstdint>
#include <optional>
#include <vector>

namespace minicpmv {

inline constexpr int64_t kAttentionSinks = 4;

// Identifies the input of a cached token: a token id, or an image token of a picture.
struct CacheKey {
  uint64_t picture;  // the picture's key; 0 for a text token
  int64_t id;        // the token id, or the index of the image token

  bool operator==(const CacheKey& other) const {
    return picture == other.picture && id == other.id;
  }
  bool operator!=(const CacheKey& other) const { return !(*this == other); }
};

// Returns the keys of a prompt's tokens. image_starts: of each image, the index of the first of its
// `image_tokens` placeholders; empty without a picture.
std::vector<CacheKey> RequestKeys(const std::vector<int32_t>& ids,
                                  const std::vector<int64_t>& image_starts, int64_t image_tokens,
                                  uint64_t picture);

// Returns how many leading tokens of a prompt are never evicted: the attention sinks and, with a
// picture, everything up to its last tag.
// picture_end: that tag's index; nullopt without a picture.
int64_t PinnedTokens(std::optional<int64_t> picture_end);

// Checks that a prompt's last turn fits beside the pinned tokens; earlier turns may slide out.
// last_turn: its tokens, of which only those after the pinned ones count. total: the prompt's.
// has_slices: whether its picture could take fewer tokens.
// Throws EngineError (prompt_too_long).
void CheckFit(int64_t window, int64_t pinned, int64_t last_turn, int64_t total, bool has_slices);

// The tokens of one conversation in a cache with a fixed number of slots.
//
// A token sees at most `window` tokens, itself included: the first `pinned`, and the newest of the
// rest. Token j is in slot j if j < pinned. After the pinned slots, rounded up to whole tiles, the
// other slots are a ring buffer in which the newest tokens overwrite the oldest. All tokens of a
// chunk are stored before its queries attend, so the ring is longer than what one query sees of it.
// The rules are those of `runtime.reference.kv_cache`.
class Window {
 public:
  // Returns how many slots, in whole tiles, chunks of `chunk` tokens need.
  static int64_t SlotsFor(int64_t window, int64_t pinned, int64_t chunk, int64_t tile);

  // tile: slots that are read as a unit, 1 or more.
  // Throws EngineError (prompt_too_long): no room beside the pinned tokens.
  Window(int64_t window, int64_t pinned, int64_t slots, int64_t tile);

  int64_t length() const { return length_; }  // tokens seen, evicted ones included
  int64_t window() const { return window_; }
  int64_t pinned() const { return pinned_; }
  int64_t ring() const { return slots_ - ring_start_; }  // slots

  // The most tokens that one Append may add.
  int64_t chunk() const { return ring() - (window_ - pinned_); }

  // Returns the slot of the token at this index in the conversation.
  int64_t Slot(int64_t index) const;

  // Returns whether the query at one index sees the key at another.
  bool Sees(int64_t query, int64_t key) const;

  // Returns a query's position relative to pinned keys, capped so that the distance stops growing.
  int64_t PinnedPosition(int64_t query) const;

  // Returns the first token after the pinned ones that is kept for the next query.
  int64_t OldestKept() const { return OldestKeptAt(length_); }

  // Adds new tokens, 1 to chunk() of them.
  void Append(int64_t count);

  // Rewinds to the first `length` tokens. Returns false, and changes nothing, if tokens that would
  // become visible again were overwritten.
  bool Truncate(int64_t length);

  // Takes back the newest `count` tokens of the last Append, fewer than it added. What earlier
  // queries saw is still there: the ring is longer than that by chunk().
  void Drop(int64_t count);

  // Rewinds to the longest common prefix with a request, or to nothing if that is not possible.
  // The request's last token is never reused: its logits are needed to start the answer.
  // cached: the keys of the tokens so far, length() of them. pinned: of the request.
  // Returns the number of tokens that stay: length().
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
