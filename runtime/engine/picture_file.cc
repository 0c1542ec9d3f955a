#include "runtime/engine/picture_file.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "runtime/engine/error.h"
#include "runtime/engine/regular_file.h"

namespace minicpmv {
namespace {

[[noreturn]] void Refuse(const std::string& path, const std::string& reason) {
  throw EngineError(error_code::kInvalidPicture, path + ": " + reason);
}

uint32_t LittleEndian(const uint8_t* bytes) {
  return static_cast<uint32_t>(bytes[0]) | static_cast<uint32_t>(bytes[1]) << 8 |
         static_cast<uint32_t>(bytes[2]) << 16 | static_cast<uint32_t>(bytes[3]) << 24;
}

// Checks a header against the file's size; returns the picture without its pixels.
RgbPicture ParseHeader(const std::string& path, const uint8_t* header, uint64_t file_size) {
  if (std::memcmp(header, kPictureMagic, sizeof(kPictureMagic) - 1) != 0) {
    Refuse(path, "not a file of decoded pixels");
  }
  const uint32_t version = LittleEndian(header + 8);
  if (version != kPictureVersion) {
    Refuse(path, "pixel file version " + std::to_string(version) + "; expected " +
                     std::to_string(kPictureVersion));
  }
  const uint64_t width = LittleEndian(header + 12), height = LittleEndian(header + 16);
  const std::string size = std::to_string(width) + " x " + std::to_string(height) + " pixels";
  if (width == 0 || height == 0) Refuse(path, size + "; expected at least one");
  if (LittleEndian(header + 20) != 0) Refuse(path, "a reserved field of the header is not zero");
  // The product of two 32-bit numbers fits into 64 bits; three times that may not.
  const uint64_t body = file_size - kPictureHeaderBytes;
  if (body % 3 != 0 || body / 3 != width * height) {
    Refuse(path, size + " do not match " + std::to_string(body) + " bytes; the file is " +
                     "truncated, or longer than its header says");
  }
  return {nullptr, static_cast<int64_t>(width), static_cast<int64_t>(height)};
}

}  // namespace

PictureFile::PictureFile(const std::string& path) {
  const RegularFile file(path);
  if (!file.problem().empty()) Refuse(path, file.problem());
  const auto file_size = static_cast<uint64_t>(file.size());
  if (file_size < kPictureHeaderBytes) Refuse(path, "too short for a file of decoded pixels");
  uint8_t header[kPictureHeaderBytes];
  if (!file.Read(header, sizeof(header))) Refuse(path, "the header cannot be read");
  picture_ = ParseHeader(path, header, file_size);
  size_ = static_cast<size_t>(file_size);
  mapped_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd(), 0);
  if (mapped_ == MAP_FAILED) Refuse(path, std::strerror(errno));
  picture_.pixels = static_cast<const uint8_t*>(mapped_) + kPictureHeaderBytes;
}

PictureFile::~PictureFile() { munmap(mapped_, size_); }

}  // namespace minicpmv
