#include "runtime/engine/output_path.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "runtime/engine/descriptor.h"
#include "runtime/engine/error.h"

namespace minicpmv {
namespace {

constexpr mode_t kPermissions = 07777;
constexpr int kFileMode = 0600;

[[noreturn]] void Refuse(const std::string& path, const std::string& problem) {
  throw EngineError(error_code::kFileError, path + ": " + problem);
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

}  // namespace

OutputPath FindOutput(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0) {
    if (errno != ENOENT) Refuse(path, std::strerror(errno));
    if (lstat(path.c_str(), &status) == 0) Refuse(path, "a dangling link");
    return {path, std::nullopt};
  }
  if (!S_ISREG(status.st_mode)) Refuse(path, "not a regular file, so it is not replaced");
  const std::unique_ptr<char, decltype(&std::free)> found(realpath(path.c_str(), nullptr),
                                                          &std::free);
  if (found == nullptr) Refuse(path, std::strerror(errno));
  return {found.get(), status.st_mode & kPermissions};
}

void ReplaceFile(const std::string& path, const std::string& content) {
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
    Refuse(path, problem);
  }
}

}  // namespace minicpmv
