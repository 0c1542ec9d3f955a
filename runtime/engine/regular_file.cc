#include "runtime/engine/regular_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace minicpmv {

RegularFile::RegularFile(const std::string& path)
    : file_(open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {
  Check();
}

RegularFile::RegularFile(int fd) : file_(fcntl(fd, F_DUPFD_CLOEXEC, 0)) { Check(); }

void RegularFile::Check() {
  struct stat status;
  if (file_.get() < 0 || fstat(file_.get(), &status) != 0) {
    problem_ = std::strerror(errno);
  } else if (!S_ISREG(status.st_mode)) {
    problem_ = "not a file";
  } else {
    size_ = static_cast<int64_t>(status.st_size);
  }
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
