#include "runtime/engine/float_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "runtime/engine/error.h"
#include "runtime/engine/output_path.h"

namespace minicpmv {
namespace {

constexpr int kFileMode = 0644;

[[noreturn]] void Refuse(const std::string& path, const std::string& problem) {
  throw EngineError(error_code::kFileError, path + ": " + problem);
}

// Returns a file's size in values, and resolves the extent of -1.
int64_t ResolveShape(const std::string& path, const RegularFile& file,
                     std::vector<int64_t>* shape) {
  if (!file.problem().empty()) Refuse(path, file.problem());
  constexpr auto kValueBytes = static_cast<int64_t>(sizeof(float));
  int64_t known = 1, *unknown = nullptr;
  for (int64_t& extent : *shape) {
    if (extent < 0) {
      unknown = &extent;
    } else {
      known *= extent;
    }
  }
  const int64_t values = file.size() / kValueBytes;
  if (unknown != nullptr) *unknown = values / known;
  const int64_t expected = known * (unknown == nullptr ? 1 : *unknown);
  if (values == 0 || expected * kValueBytes != file.size()) {
    Refuse(path, std::to_string(file.size()) + " bytes do not match the float32 shape that this " +
                     "block takes");
  }
  return values;
}

int Create(const std::string& path) {
  const std::string place = FindOutput(path).path;
  // Does not wait for the other end of a path that became a pipe since.
  constexpr int kFlags = O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK | O_CLOEXEC;
  const int fd = open(place.c_str(), kFlags, kFileMode);
  if (fd < 0) Refuse(path, std::strerror(errno));
  return fd;
}

}  // namespace

FloatInput::FloatInput(const std::string& path, std::vector<int64_t> shape)
    : FloatInput(path, RegularFile(path), std::move(shape)) {}

FloatInput::FloatInput(const std::string& path, const RegularFile& file, std::vector<int64_t> shape)
    : shape_(std::move(shape)),
      values_(static_cast<size_t>(ResolveShape(path, file, &shape_)) * sizeof(float)) {
  if (!file.Read(values_.data(), values_.size())) Refuse(path, "cannot be read");
}

Tensor FloatInput::Rows(int64_t first, int64_t count) const {
  const int64_t width = shape_.back();
  return Borrow(values_.floats() + first * width, {count, width}, kFloat32);
}

FloatOutput::FloatOutput(const std::string& path) : path_(path), fd_(Create(path)) {}

FloatOutput::~FloatOutput() { close(fd_); }

void FloatOutput::Write(const Tensor& tensor, int64_t offset) const {
  const auto* bytes = static_cast<const char*>(tensor.data_ptr());
  auto left = static_cast<size_t>(tensor.numel()) * sizeof(float);
  auto place = static_cast<off_t>(offset) * static_cast<off_t>(sizeof(float));
  while (left > 0) {
    const ssize_t count = pwrite(fd_, bytes, left, place);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) Refuse(path_, std::strerror(errno));
    bytes += count;
    place += count;
    left -= static_cast<size_t>(count);
  }
}

}  // namespace minicpmv
