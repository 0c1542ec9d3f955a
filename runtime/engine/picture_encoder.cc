#include "runtime/engine/picture_encoder.h"

#include <utility>

#include "runtime/engine/hash.h"

namespace minicpmv {
namespace {

constexpr size_t kPicturesKept = 8;  // 0.6 MB for each image of the full-size model

// Returns the pixels of the largest image.
int64_t MostPixels(const VisionConfig& c) {
  return c.most_patches() * c.patch_size * c.patch_size;
}

size_t ResizedBytes(Size image) { return static_cast<size_t>(3 * image.area()); }

// Returns an image of a list; null if it is not there.
std::shared_ptr<const EncodedImage> FindIn(
    const std::vector<std::shared_ptr<const EncodedImage>>& images, uint64_t key) {
  for (const auto& image : images) {
    if (image->key == key) return image;
  }
  return nullptr;
}

uint64_t ImageKey(Size image, const uint8_t* resized) {
  const uint64_t content[] = {static_cast<uint64_t>(image.width),
                              HashBytes(resized, ResizedBytes(image))};
  return HashBytes(content, sizeof(content));
}

}  // namespace

PictureEncoder::PictureEncoder(const Blocks& blocks)
    : blocks_(blocks),
      preprocessor_(MostPixels(*blocks.config().vision)),
      positions_(blocks),
      pixels_(static_cast<size_t>(3 * MostPixels(*blocks.config().vision)) * sizeof(float)) {}

const EncodedPicture* PictureEncoder::Encode(const RgbPicture& picture, const Cut& cut,
                                             const WorkHooks& hooks) {
  if (!ResizeAll(picture, cut, hooks.cancelled)) return nullptr;
  const uint64_t key = PictureKey(cut.grid, keys_);
  if (const EncodedPicture* known = Find(key)) return known;
  std::vector<Image> images =
      Run(cut, hooks, [this](uint64_t image) { return FindImage(image); });
  if (static_cast<int64_t>(images.size()) < cut.images()) {
    unfinished_ = std::move(images);
    return nullptr;
  }
  unfinished_.clear();
  return Remember({key, cut.grid, std::move(images)});
}

std::optional<EncodedPicture> PictureEncoder::Compute(const RgbPicture& picture, const Cut& cut,
                                                      const WorkHooks& hooks) {
  if (!ResizeAll(picture, cut, hooks.cancelled)) return std::nullopt;
  std::vector<Image> images = Run(cut, hooks, [](uint64_t) { return nullptr; });
  if (static_cast<int64_t>(images.size()) < cut.images()) return std::nullopt;
  return EncodedPicture{PictureKey(cut.grid, keys_), cut.grid, std::move(images)};
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

Tensor PictureEncoder::Preprocess(const RgbPicture& picture, const Cut& cut, int64_t image) {
  const Size size = cut.ImageSize(image);
  const uint8_t* resized =
      preprocessor_.Resize(picture, cut.Whole(image), cut.Part(image), [] { return false; });
  ImagePreprocessor::Normalize(resized, size, pixels_.floats());
  return Pixels(size);
}

bool PictureEncoder::ResizeAll(const RgbPicture& picture, const Cut& cut,
                               const std::function<bool()>& cancelled) {
  resized_.clear();
  keys_.clear();
  for (int64_t i = 0; i < cut.images(); ++i) {
    const Size size = cut.ImageSize(i);
    const uint8_t* resized =
        preprocessor_.Resize(picture, cut.Whole(i), cut.Part(i), cancelled);
    if (resized == nullptr) return false;
    resized_.insert(resized_.end(), resized, resized + ResizedBytes(size));
    keys_.push_back(ImageKey(size, resized));
  }
  return true;
}

std::vector<PictureEncoder::Image> PictureEncoder::Run(
    const Cut& cut, const WorkHooks& hooks, const std::function<Image(uint64_t key)>& known) {
  const int64_t blocks = blocks_.config().vision->depth + 2, total = blocks * cut.images();
  std::vector<Image> images;
  const uint8_t* resized = resized_.data();
  bool computed = false;
  for (const uint64_t key : keys_) {
    const auto number = static_cast<int64_t>(images.size());
    const Size size = cut.ImageSize(number);
    Image image = FindIn(images, key);
    if (image == nullptr) image = known(key);
    if (image == nullptr) {
      ImagePreprocessor::Normalize(resized, size, pixels_.floats());
      std::vector<float> tokens = RunBlocks(size, hooks, number * blocks, total);
      blocks_.ReleaseMemory();
      if (tokens.empty()) break;
      image = std::make_shared<const EncodedImage>(EncodedImage{key, std::move(tokens)});
      computed = true;
    } else if (computed) {
      hooks.progress((number + 1) * blocks, total);
    }
    images.push_back(std::move(image));
    resized += ResizedBytes(size);
  }
  return images;
}

std::vector<float> PictureEncoder::RunBlocks(Size image, const WorkHooks& hooks, int64_t done,
                                             int64_t total) {
  const VisionConfig& c = *blocks_.config().vision;
  const Size patches = c.Patches(image);
  if (hooks.cancelled()) return {};
  Tensor x = blocks_.VisionEmbed(Pixels(image), positions_.Positions(patches));
  hooks.progress(++done, total);
  for (int64_t i = 0; i < c.depth; ++i) {
    if (hooks.cancelled()) return {};
    x = blocks_.VisionBlock(i, x);
    hooks.progress(++done, total);
  }
  if (hooks.cancelled()) return {};
  x = blocks_.Resample(blocks_.VisionNorm(x), positions_.KeyPositions(patches));
  hooks.progress(++done, total);
  const auto* tokens = static_cast<const float*>(x.data_ptr());
  return std::vector<float>(tokens, tokens + x.numel());
}

PictureEncoder::Image PictureEncoder::FindImage(uint64_t key) const {
  for (const EncodedPicture& picture : pictures_) {
    if (Image image = FindIn(picture.images, key)) return image;
  }
  return FindIn(unfinished_, key);
}

Tensor PictureEncoder::Pixels(Size image) const {
  return Borrow(pixels_.data(), {3, image.height, image.width}, kFloat32);
}

}  // namespace minicpmv
