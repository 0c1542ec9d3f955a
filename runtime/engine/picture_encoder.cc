#include "runtime/engine/picture_encoder.h"

#include <cstring>
#include <utility>

namespace minicpmv {
namespace {

constexpr size_t kPicturesKept = 8;  // 0.6 MB each at full size

// Returns a number that is another one for other pixels, but for one chance in 2^64; never 0.
uint64_t KeyOf(const uint8_t* bytes, size_t size) {
  uint64_t key = size;
  const auto mix = [&key](uint64_t word) {
    key = (key ^ word) * 0x9E3779B97F4A7C15;
    key ^= key >> 32;
  };
  for (; size > 0;) {
    uint64_t word = 0;
    const size_t count = size < sizeof(word) ? size : sizeof(word);
    std::memcpy(&word, bytes, count);
    mix(word);
    bytes += count;
    size -= count;
  }
  mix(0);
  return key == 0 ? 1 : key;
}

}  // namespace

PictureEncoder::PictureEncoder(const Blocks& blocks)
    : blocks_(blocks),
      preprocessor_(blocks.config().vision->image_size),
      pixels_(static_cast<size_t>(3 * preprocessor_.image_size() * preprocessor_.image_size()) *
              sizeof(float)) {}

const EncodedPicture* PictureEncoder::Encode(const RgbPicture& picture, const WorkHooks& hooks) {
  const uint8_t* resized = preprocessor_.Resize(picture, hooks.cancelled);
  if (resized == nullptr) return nullptr;
  const uint64_t key = KeyOf(resized, pixels_.size() / sizeof(float));
  if (const EncodedPicture* known = Find(key)) return known;
  preprocessor_.Normalize(resized, pixels_.floats());
  std::vector<float> tokens = Run(hooks);
  blocks_.ReleaseMemory();
  if (tokens.empty()) return nullptr;
  pictures_.push_front({key, std::move(tokens)});
  if (pictures_.size() > kPicturesKept) pictures_.pop_back();
  return &pictures_.front();
}

const EncodedPicture* PictureEncoder::Find(uint64_t key) {
  for (auto it = pictures_.begin(); it != pictures_.end(); ++it) {
    if (it->key != key) continue;
    pictures_.splice(pictures_.begin(), pictures_, it);
    return &pictures_.front();
  }
  return nullptr;
}

Tensor PictureEncoder::Preprocess(const RgbPicture& picture) {
  const int64_t side = preprocessor_.image_size();
  preprocessor_.Normalize(preprocessor_.Resize(picture, [] { return false; }), pixels_.floats());
  return Borrow(pixels_.data(), {3, side, side}, kFloat32);
}

// Returns image tokens (Q, D); none if cancelled.
std::vector<float> PictureEncoder::Run(const WorkHooks& hooks) const {
  const VisionConfig& c = *blocks_.config().vision;
  const int64_t total = c.depth + 2;
  if (hooks.cancelled()) return {};
  Tensor x = blocks_.VisionEmbed(Borrow(pixels_.data(), {3, c.image_size, c.image_size}, kFloat32));
  hooks.progress(1, total);
  for (int64_t i = 0; i < c.depth; ++i) {
    if (hooks.cancelled()) return {};
    x = blocks_.VisionBlock(i, x);
    hooks.progress(i + 2, total);
  }
  if (hooks.cancelled()) return {};
  x = blocks_.Resample(blocks_.VisionNorm(x));
  hooks.progress(total, total);
  const auto* tokens = static_cast<const float*>(x.data_ptr());
  return std::vector<float>(tokens, tokens + x.numel());
}

}  // namespace minicpmv
