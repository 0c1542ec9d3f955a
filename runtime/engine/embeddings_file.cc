#include "runtime/engine/embeddings_file.h"

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "runtime/engine/error.h"
#include "runtime/engine/hash.h"
#include "runtime/engine/output_path.h"
#include "runtime/engine/regular_file.h"

namespace minicpmv {
namespace {

constexpr char kMagic[] = "MCPMVEMB";
constexpr uint32_t kVersion = 2;
constexpr size_t kHeaderBytes = 40;  // before the identity
constexpr size_t kVersionOffset = 8, kGridOffset = 16, kChecksumOffset = 32;

[[noreturn]] void Refuse(const std::string& path, const std::string& problem) {
  throw EngineError(error_code::kInvalidEmbeddings, path + ": " + problem);
}

std::string TextOf(const EmbeddingsIdentity& identity) {
  return identity.program_id + " " + identity.weights_sha256;
}

size_t Values(const EmbeddingsIdentity& identity) {
  return static_cast<size_t>(identity.image_tokens * identity.width);
}

// Returns the size of a file with a picture of this grid.
size_t FileBytes(const EmbeddingsIdentity& identity, Grid grid) {
  const size_t image = sizeof(uint64_t) + Values(identity) * sizeof(float);
  return kHeaderBytes + TextOf(identity).size() + static_cast<size_t>(grid.images()) * image;
}

// Appends a number's bytes; both platforms of the engine are little-endian.
template <typename Number>
void Append(Number number, std::string* content) {
  content->append(reinterpret_cast<const char*>(&number), sizeof(number));
}

template <typename Number>
Number NumberAt(const std::string& content, size_t offset) {
  Number number;
  std::memcpy(&number, content.data() + offset, sizeof(number));
  return number;
}

// Returns everything before the images, with a checksum of zero.
std::string HeaderOf(const EmbeddingsIdentity& identity, Grid grid) {
  const std::string text = TextOf(identity);
  std::string header(kMagic);
  Append(kVersion, &header);
  Append(static_cast<uint32_t>(text.size()), &header);
  Append(static_cast<uint32_t>(grid.columns), &header);
  Append(static_cast<uint32_t>(grid.rows), &header);
  Append(static_cast<uint32_t>(identity.image_tokens), &header);
  Append(static_cast<uint32_t>(identity.width), &header);
  Append(uint64_t{0}, &header);
  return header + text;
}

// Returns the checksum and overwrites it with zeros.
uint64_t TakeChecksum(std::string* content) {
  const auto checksum = NumberAt<uint64_t>(*content, kChecksumOffset);
  content->replace(kChecksumOffset, sizeof(checksum), sizeof(checksum), '\0');
  return checksum;
}

// Reads the columns and rows of slices; refuses a grid that no picture of the model has.
Grid ReadGrid(const std::string& path, const std::string& content, int64_t max_slices) {
  const Grid grid{NumberAt<uint32_t>(content, kGridOffset),
                  NumberAt<uint32_t>(content, kGridOffset + sizeof(uint32_t))};
  // Neither alone may be 0, and a division instead of the product cannot overflow.
  const bool valid = grid.empty() ? grid.rows == 0
                                  : grid.rows > 0 && grid.columns <= max_slices / grid.rows;
  if (!valid) Refuse(path, "no picture of this model has as many slices; damaged, or another's");
  return grid;
}

// Reads a file of this format, whose size fits its grid.
std::string ReadWhole(const std::string& path, const EmbeddingsIdentity& identity) {
  const RegularFile file(path);
  if (!file.problem().empty()) Refuse(path, file.problem());
  const auto size = static_cast<uint64_t>(file.size());
  std::string content(kHeaderBytes, '\0');
  if (size < kHeaderBytes || !file.Read(content.data(), kHeaderBytes) ||
      content.compare(0, sizeof(kMagic) - 1, kMagic) != 0) {
    Refuse(path, "not an embeddings file");
  }
  const auto version = NumberAt<uint32_t>(content, kVersionOffset);
  if (version != kVersion) {
    Refuse(path, "version " + std::to_string(version) + " of the format; expected " +
                     std::to_string(kVersion) + ": encode the picture again");
  }
  const size_t expected = FileBytes(identity, ReadGrid(path, content, identity.max_slices));
  if (size != expected) {
    Refuse(path, "it has " + std::to_string(size) + " bytes; embeddings of this model have " +
                     std::to_string(expected) + ": truncated, or another model's");
  }
  content.resize(expected);
  if (!file.Read(content.data() + kHeaderBytes, expected - kHeaderBytes)) {
    Refuse(path, "cannot be read");
  }
  return content;
}

// Reads an image and moves the offset past it.
std::shared_ptr<const EncodedImage> ReadImage(const std::string& path, const std::string& content,
                                              size_t values, size_t* offset) {
  EncodedImage image{NumberAt<uint64_t>(content, *offset), std::vector<float>(values)};
  *offset += sizeof(image.key);
  std::memcpy(image.tokens.data(), content.data() + *offset, values * sizeof(float));
  *offset += values * sizeof(float);
  if (image.key == 0) Refuse(path, "damaged or altered");
  for (const float value : image.tokens) {
    if (!std::isfinite(value)) Refuse(path, "a value is not finite");
  }
  return std::make_shared<const EncodedImage>(std::move(image));
}

}  // namespace

int64_t SaveEmbeddings(const std::string& path, const EmbeddingsIdentity& identity,
                       const EncodedPicture& picture) {
  std::string content = HeaderOf(identity, picture.grid);
  for (const auto& image : picture.images) {
    Append(image->key, &content);
    content.append(reinterpret_cast<const char*>(image->tokens.data()),
                   image->tokens.size() * sizeof(float));
  }
  const uint64_t checksum = HashBytes(content.data(), content.size());
  std::memcpy(content.data() + kChecksumOffset, &checksum, sizeof(checksum));
  ReplaceFile(path, content);
  return static_cast<int64_t>(content.size());
}

EncodedPicture LoadEmbeddings(const std::string& path, const EmbeddingsIdentity& identity) {
  std::string content = ReadWhole(path, identity);
  const uint64_t checksum = TakeChecksum(&content);
  if (HashBytes(content.data(), content.size()) != checksum) Refuse(path, "damaged or altered");
  EncodedPicture picture{0, ReadGrid(path, content, identity.max_slices), {}};
  const std::string header = HeaderOf(identity, picture.grid);
  if (content.compare(0, header.size(), header) != 0) {
    Refuse(path, "made by another program or with other weights");
  }
  size_t offset = header.size();
  std::vector<uint64_t> keys;
  while (offset < content.size()) {
    picture.images.push_back(ReadImage(path, content, Values(identity), &offset));
    keys.push_back(picture.images.back()->key);
  }
  picture.key = PictureKey(picture.grid, keys);
  return picture;
}

}  // namespace minicpmv
