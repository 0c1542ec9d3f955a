#include "runtime/engine/output_path.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "runtime/engine/error.h"

namespace minicpmv {
namespace {

constexpr mode_t kPermissions = 07777;

[[noreturn]] void Refuse(const std::string& path, const std::string& problem) {
  throw EngineError(error_code::kFileError, path + ": " + problem);
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

}  // namespace minicpmv
