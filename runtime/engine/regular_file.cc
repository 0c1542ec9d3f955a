#include "runtime/engine/regular_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace minicpmv {
namespace {

constexpr int kFileMode = 0644;
constexpr char kNotRegular[] = "not a file";

// Returns what is wrong with an open file; empty if it is a regular one.
std::string Check(int fd, struct stat* status) {
  if (fd < 0) return std::strerror(errno);
  if (fstat(fd, status) != 0) return std::strerror(errno);
  return S_ISREG(status->st_mode) ? "" : kNotRegular;
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

int CreateRegularFile(const std::string& path, std::string* problem) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC, kFileMode);
  struct stat status;
  *problem = Check(fd, &status);
  if (problem->empty() && ftruncate(fd, 0) != 0) *problem = std::strerror(errno);
  if (problem->empty()) return fd;
  if (fd >= 0) close(fd);
  return -1;
}

}  // namespace minicpmv
