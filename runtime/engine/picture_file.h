// A file of decoded pixels, by which a client passes a picture to the engine.
//
// The format, little-endian, written by `runtime/inputs/picture_file.py` and by the app:
//   offset  size  field
//        0     8  magic, the bytes "MCPMVRGB"
//        8     4  version, unsigned: 1
//       12     4  width, unsigned, pixels: at least 1
//       16     4  height, unsigned, pixels: at least 1
//       20     4  zero
//       24     3 * width * height  rows from the top, each pixel as bytes red, green, blue
// and nothing after it.
#ifndef MINICPMV_ENGINE_PICTURE_FILE_H_
#define MINICPMV_ENGINE_PICTURE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <string>

namespace minicpmv {

inline constexpr char kPictureMagic[] = "MCPMVRGB";
inline constexpr uint32_t kPictureVersion = 1;
inline constexpr size_t kPictureHeaderBytes = 24;

// Pixels.
struct Size {
  int64_t width;
  int64_t height;

  int64_t area() const { return width * height; }
  bool operator==(const Size& other) const {
    return width == other.width && height == other.height;
  }
};

// A part of a resized picture, pixels.
struct Region {
  int64_t left, top;
  Size size;
};

// A view of pixels (height, width, 3): red, green, blue. Does not own them.
struct RgbPicture {
  const uint8_t* pixels;
  int64_t width;
  int64_t height;
};

// A picture file, mapped read-only and fully validated. It must not change while it is open.
class PictureFile {
 public:
  // Throws EngineError (invalid_picture): no such file, or not this format.
  explicit PictureFile(const std::string& path);
  ~PictureFile();

  PictureFile(const PictureFile&) = delete;
  PictureFile& operator=(const PictureFile&) = delete;

  const RgbPicture& picture() const { return picture_; }

 private:
  void* mapped_ = nullptr;
  size_t size_ = 0;  // bytes
  RgbPicture picture_{};
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_PICTURE_FILE_H_
