#include "runtime/engine/embeddings_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "runtime/engine/descriptor.h"
#include "runtime/engine/error.h"
#include "runtime/engine/hash.h"
#include "runtime/engine/output_path.h"
#include "runtime/engine/regular_file.h"

namespace minicpmv {
namespace {

constexpr char kMagic[] = "MCPMVEMB";
constexpr uint32_t kVersion = 1;
constexpr size_t kHeaderBytes = 40, kChecksumOffset = 32;
constexpr int kFileMode = 0600;  // pictures are private to their owner

[[noreturn]] void Refuse(const std::string& path, const std::string& problem) {
  throw EngineError(error_code::kInvalidEmbeddings, path + ": " + problem);
}

std::string TextOf(const EmbeddingsIdentity& identity) {
  return identity.program_id + " " + identity.weights_sha256;
}

size_t ValueBytes(const EmbeddingsIdentity& identity) {
  return static_cast<size_t>(identity.image_tokens * identity.width) * sizeof(float);
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

// Returns everything before the values, with a checksum of zero.
std::string HeaderOf(const EmbeddingsIdentity& identity, uint64_t key) {
  const std::string text = TextOf(identity);
  std::string header(kMagic);
  Append(kVersion, &header);
  Append(static_cast<uint32_t>(text.size()), &header);
  Append(key, &header);
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

// Returns whether everything was written.
bool WriteAll(int fd, const std::string& content) {
  for (size_t done = 0; done < content.size();) {
    const ssize_t count = write(fd, content.data() + done, content.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    done += static_cast<size_t>(count);
  }
  return true;
}

// Reads a file that must have exactly this size.
std::string ReadWhole(const std::string& path, size_t size) {
  const RegularFile file(path);
  if (!file.problem().empty()) Refuse(path, file.problem());
  if (static_cast<uint64_t>(file.size()) != size) {
    Refuse(path, "it has " + std::to_string(file.size()) + " bytes; embeddings of this model " +
                     "have " + std::to_string(size) + ": truncated, or another model's");
  }
  std::string content(size, '\0');
  if (!file.Read(content.data(), size)) Refuse(path, "cannot be read");
  return content;
}

}  // namespace

int64_t SaveEmbeddings(const std::string& path, const EmbeddingsIdentity& identity,
                       const EncodedPicture& picture) {
  std::string content = HeaderOf(identity, picture.key);
  content.append(reinterpret_cast<const char*>(picture.tokens.data()),
                 picture.tokens.size() * sizeof(float));
  const uint64_t checksum = HashBytes(content.data(), content.size());
  std::memcpy(content.data() + kChecksumOffset, &checksum, sizeof(checksum));
  const OutputPath place = FindOutput(path);
  const std::string partial = place.path + ".partial-" + std::to_string(getpid());
  bool opened = false, written = false;
  {
    const Descriptor file(
        open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, kFileMode));
    opened = file.get() >= 0;
    written = opened && WriteAll(file.get(), content) &&
              (!place.mode || fchmod(file.get(), *place.mode) == 0);
  }
  written = written && std::rename(partial.c_str(), place.path.c_str()) == 0;
  if (!written) {
    const std::string problem = std::strerror(errno);
    if (opened) unlink(partial.c_str());
    throw EngineError(error_code::kFileError, path + ": " + problem);
  }
  return static_cast<int64_t>(content.size());
}

EncodedPicture LoadEmbeddings(const std::string& path, const EmbeddingsIdentity& identity) {
  const size_t start = kHeaderBytes + TextOf(identity).size();
  std::string content = ReadWhole(path, start + ValueBytes(identity));
  const uint64_t checksum = TakeChecksum(&content);
  if (content.compare(0, sizeof(kMagic) - 1, kMagic) != 0) Refuse(path, "not an embeddings file");
  if (HashBytes(content.data(), content.size()) != checksum) Refuse(path, "damaged or altered");
  const auto key = NumberAt<uint64_t>(content, 16);
  if (key == 0 || content.compare(0, start, HeaderOf(identity, key)) != 0) {
    Refuse(path, "of another version, or made by another program or with other weights");
  }
  EncodedPicture picture{key, std::vector<float>(ValueBytes(identity) / sizeof(float))};
  std::memcpy(picture.tokens.data(), content.data() + start, ValueBytes(identity));
  for (const float value : picture.tokens) {
    if (!std::isfinite(value)) Refuse(path, "a value is not finite");
  }
  return picture;
}

}  // namespace minicpmv
