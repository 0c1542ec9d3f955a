#include "runtime/engine/regular_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace minicpmv {
namespace {

// Returns what is wrong with an open file; empty if it is a regular one.
std::string Check(int fd, struct stat* status) {
  if (fd < 0) return std::strerror(errno);
  if (fstat(fd, status) != 0) return std::strerror(errno);
  return S_ISREG(status->st_mode) ? "" : "not a file";
}

}  // namespace

RegularFile::RegularFile(const std::string& path)
    : file_(open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {
  struct stat status;
  problem_ = Check(file_.get(), &status);
  if (problem_.empty()) size_ = static_cast<int64_t>(status.st_size);
}

bool RegularFile::Read(void* data, size_t size) const {
  for (size_t done = 0; done < size;) {
    const ssize_t count = read(file_.get(), static_cast<char*>(data) + done, size - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    done += static_cast<size_t>(count);
  }
  return true;
}

}  // namespace minicpmv
