#include "runtime/engine/prompt_lookup.h"

#include <algorithm>

namespace minicpmv {
namespace {

constexpr double kNewest = 0.25;  // weight of the newest pass in the smoothed time
constexpr int64_t kLongestPause = 1024;

}  // namespace

std::vector<int32_t> PromptLookup::Draft(int64_t most) {
  if (pause_ > 0) {
    --pause_;
    return {};
  }
  most = std::min(most, kMostDrafted);
  if (single_ms_ == 0 || most < 1 || tokens_.size() <= kMatched) return {};
  const auto newest = tokens_.end() - static_cast<int64_t>(kMatched);
  // The latest place counts: what was said last is likelier to be said again.
  const auto found = std::find_end(tokens_.begin(), tokens_.end() - 1, newest, tokens_.end());
  if (found == tokens_.end() - 1) return {};
  // Drafts may go on behind the newest token: then what repeats is shorter than they are.
  std::vector<int32_t> drafted;
  const auto followed = static_cast<size_t>(tokens_.end() - found) - kMatched;
  for (size_t i = 0; i < static_cast<size_t>(most); ++i) {
    drafted.push_back(*(tokens_.end() - static_cast<int64_t>(followed - i % followed)));
  }
  return drafted;
}

void PromptLookup::Learn(size_t drafted, size_t accepted, double ms) {
  if (drafted == 0) {
    single_ms_ = single_ms_ == 0 ? ms : single_ms_ + kNewest * (ms - single_ms_);
    return;
  }
  if (static_cast<double>(accepted + 1) * single_ms_ > ms) {
    next_pause_ = kFirstPause;
  } else {
    pause_ = next_pause_;
    next_pause_ = std::min(2 * next_pause_, kLongestPause);
  }
}

}  // namespace minicpmv
