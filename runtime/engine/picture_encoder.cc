#include "runtime/engine/picture_encoder.h"

#include <utility>

#include "runtime/engine/hash.h"

namespace minicpmv {
namespace {

constexpr size_t kPicturesKept = 8;  // 0.6 MB each for the full-size model

}  // namespace

PictureEncoder::PictureEncoder(const Blocks& blocks)
    : blocks_(blocks),
      size_{blocks.config().vision->image_size, blocks.config().vision->image_size},
      preprocessor_(size_.area()),
      pixels_(static_cast<size_t>(3 * size_.area()) * sizeof(float)) {}

const EncodedPicture* PictureEncoder::Encode(const RgbPicture& picture, const WorkHooks& hooks) {
  const uint8_t* resized = preprocessor_.Resize(picture, size_, hooks.cancelled);
  if (resized == nullptr) return nullptr;
  if (const EncodedPicture* known = Find(HashBytes(resized, resized_bytes()))) return known;
  auto encoded = Run(resized, hooks);
  return encoded ? Remember(*std::move(encoded)) : nullptr;
}

std::optional<EncodedPicture> PictureEncoder::Compute(const RgbPicture& picture,
                                                      const WorkHooks& hooks) {
  const uint8_t* resized = preprocessor_.Resize(picture, size_, hooks.cancelled);
  if (resized == nullptr) return std::nullopt;
  return Run(resized, hooks);
}

const EncodedPicture* PictureEncoder::Remember(EncodedPicture picture) {
  pictures_.push_front(std::move(picture));
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
  const uint8_t* resized = preprocessor_.Resize(picture, size_, [] { return false; });
  ImagePreprocessor::Normalize(resized, size_, size_.width, pixels_.floats());
  return Borrow(pixels_.data(), {3, size_.height, size_.width}, kFloat32);
}

std::optional<EncodedPicture> PictureEncoder::Run(const uint8_t* resized, const WorkHooks& hooks) {
  EncodedPicture picture{HashBytes(resized, resized_bytes()), {}};
  ImagePreprocessor::Normalize(resized, size_, size_.width, pixels_.floats());
  picture.tokens = RunBlocks(hooks);
  blocks_.ReleaseMemory();
  if (picture.tokens.empty()) return std::nullopt;
  return picture;
}

std::vector<float> PictureEncoder::RunBlocks(const WorkHooks& hooks) const {
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
